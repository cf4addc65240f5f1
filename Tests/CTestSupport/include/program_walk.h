/* SPDX-License-Identifier: Apache-2.0 */
/* Walks through a BPF program instruction by instruction, to count those that a packet costs: no clock says it so exactly. */
#ifndef WGPLANE_PROGRAM_WALK_H
#define WGPLANE_PROGRAM_WALK_H

#include <stddef.h>
#include <stdint.h>

struct wgt_program;

/* What a program is given, and what became of it. */
struct wgt_walk {
	/* From the link header on; the program may change them. */
	uint8_t *packet;
	size_t size;
	uint32_t mark, ifindex, ingress_ifindex;
	/* Network byte order, of the link header. */
	uint16_t protocol;
	int32_t verdict;
	/* Instructions, those of functions too; a helper is one. */
	uint64_t instructions;
	uint64_t helpers;
	/* What it could not follow; NULL: nothing. */
	const char *failure;
};

/* Loads an object of one program with the maps that are pinned in a folder, and the constants that it is to have. NULL: it
 * cannot, and errno says why. */
struct wgt_program *wgt_program_open(const void *image, size_t size, const char *pins,
				     const void *constants, size_t constants_size);
void wgt_program_close(struct wgt_program *program);
/* Maps are read as they are, and what the program writes to them stays its own. */
void wgt_program_walk(struct wgt_program *program, struct wgt_walk *walk);

#endif
