/* SPDX-License-Identifier: Apache-2.0 */
/* The machine that a program is walked on: its instructions (machine.c), its maps and helpers (program_walk.c). */
#ifndef WGPLANE_TEST_MACHINE_H
#define WGPLANE_TEST_MACHINE_H

#include "program_walk.h"

#include <linux/bpf.h>

enum { STACK = 512, FRAMES = 8, LONGEST = 1 << 20, HEADROOM = 256, TAILROOM = 512 };

/* A value that a program has looked up or made, by map and key. */
struct entry {
	struct entry *next;
	int map;
	uint32_t key_size;
	int is_gone;
	void *value;
	uint8_t key[];
};

struct wgt_program {
	struct bpf_object *object;
	const struct bpf_insn *insns;
	size_t count;
	struct entry *entries;
};

struct machine {
	struct wgt_program *program;
	struct wgt_walk *walk;
	struct __sk_buff context;
	uint8_t *data, *data_end;
	uint64_t stack[FRAMES][STACK / 8];
};

/* The value of a map's key, or 0. */
uint64_t wgt_look_up(struct wgt_program *program, int map, const void *key);
/* Calls a helper by its number, with arguments in r[1] to r[5]. */
int64_t wgt_helper(struct machine *machine, int32_t number, uint64_t *r);
/* Runs the function that begins at an instruction; returns its r0. */
uint64_t wgt_run(struct machine *machine, size_t at, const uint64_t *arguments, int depth);

#endif
