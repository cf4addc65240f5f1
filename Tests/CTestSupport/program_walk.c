// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "machine.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct wgt_program *wgt_program_open(const void *image, size_t size, const char *pins,
				     const void *constants, size_t constants_size)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .pin_root_path = pins);
	struct wgt_program *program = calloc(1, sizeof(*program));
	struct bpf_program *found;
	struct bpf_map *map;

	if (!program)
		return NULL;
	program->object = bpf_object__open_mem(image, size, &options);
	if (!program->object)
		goto failed;
	bpf_object__for_each_map(map, program->object)
	{
		const char *name = bpf_map__name(map);

		if (strlen(name) > 7 && !strcmp(name + strlen(name) - 7, ".rodata") &&
		    bpf_map__set_initial_value(map, constants, constants_size))
			goto failed;
	}
	if (bpf_object__load(program->object))
		goto failed;
	found = bpf_object__next_program(program->object, NULL);
	program->insns = bpf_program__insns(found);
	program->count = bpf_program__insn_cnt(found);
	return program;
failed:
	wgt_program_close(program);
	return NULL;
}

static void forget(struct wgt_program *program)
{
	while (program->entries) {
		struct entry *next = program->entries->next;

		free(program->entries->value);
		free(program->entries);
		program->entries = next;
	}
}

void wgt_program_close(struct wgt_program *program)
{
	if (!program)
		return;
	forget(program);
	if (program->object)
		bpf_object__close(program->object);
	free(program);
}

/* Maps */

static struct entry *entry_of(struct wgt_program *program, int map, const void *key)
{
	struct bpf_map_info info = {0};
	uint32_t length = sizeof(info);
	struct entry *entry;
	size_t size;

	if (bpf_obj_get_info_by_fd(map, &info, &length))
		return NULL;
	for (entry = program->entries; entry; entry = entry->next)
		if (entry->map == map && !memcmp(entry->key, key, info.key_size))
			return entry;
	/* A value for each processor, of which the first is taken. */
	size = ((size_t)info.value_size + 7) / 8 * 8 * (size_t)libbpf_num_possible_cpus();
	entry = calloc(1, sizeof(*entry) + info.key_size);
	if (!entry)
		return NULL;
	entry->map = map;
	entry->key_size = info.key_size;
	memcpy(entry->key, key, info.key_size);
	entry->value = calloc(1, size);
	entry->is_gone = bpf_map_lookup_elem(map, key, entry->value) != 0;
	entry->next = program->entries;
	program->entries = entry;
	return entry;
}

uint64_t wgt_look_up(struct wgt_program *program, int map, const void *key)
{
	struct entry *entry = entry_of(program, map, key);

	return entry && !entry->is_gone ? (uint64_t)entry->value : 0;
}

static int64_t update(struct wgt_program *program, int map, const void *key, const void *value)
{
	struct bpf_map_info info = {0};
	uint32_t length = sizeof(info);
	struct entry *entry = entry_of(program, map, key);

	if (!entry || bpf_obj_get_info_by_fd(map, &info, &length))
		return -ENOMEM;
	memcpy(entry->value, value, info.value_size);
	entry->is_gone = 0;
	return 0;
}

/* Helpers */

/* Makes room at the front (more than 0) or takes bytes away there. */
static int64_t change_head(struct machine *machine, int64_t size)
{
	machine->data -= size;
	machine->context.len += (uint32_t)size;
	return 0;
}

int64_t wgt_helper(struct machine *machine, int32_t number, uint64_t *r)
{
	uint64_t size = (uint64_t)(machine->data_end - machine->data);

	switch (number) {
	case BPF_FUNC_map_lookup_elem:
		return (int64_t)wgt_look_up(machine->program, (int)r[1], (void *)r[2]);
	case BPF_FUNC_map_update_elem:
		return update(machine->program, (int)r[1], (void *)r[2], (void *)r[3]);
	case BPF_FUNC_map_delete_elem: {
		struct entry *entry = entry_of(machine->program, (int)r[1], (void *)r[2]);

		if (!entry || entry->is_gone)
			return -ENOENT;
		entry->is_gone = 1;
		return 0;
	}
	case BPF_FUNC_skb_load_bytes:
		if (r[2] + r[4] > size) {
			memset((void *)r[3], 0, r[4]);
			return -EFAULT;
		}
		memcpy((void *)r[3], machine->data + r[2], r[4]);
		return 0;
	case BPF_FUNC_skb_store_bytes:
		if (r[2] + r[4] > size)
			return -EFAULT;
		memcpy(machine->data + r[2], (void *)r[3], r[4]);
		return 0;
	case BPF_FUNC_ktime_get_ns:
	case BPF_FUNC_ktime_get_coarse_ns: {
		struct timespec now;

		clock_gettime(CLOCK_MONOTONIC, &now);
		return now.tv_sec * 1000000000 + now.tv_nsec;
	}
	case BPF_FUNC_jiffies64:
		return 0;
	case BPF_FUNC_get_prandom_u32:
		return 4;
	case BPF_FUNC_redirect:
	case BPF_FUNC_redirect_peer:
	case BPF_FUNC_redirect_neigh:
		return 7; /* TC_ACT_REDIRECT */
	case BPF_FUNC_skb_change_head:
		return change_head(machine, (int64_t)r[2]);
	case BPF_FUNC_skb_adjust_room:
		return change_head(machine, (int32_t)r[2]);
	case BPF_FUNC_skb_change_tail:
		machine->data_end = machine->data + r[2];
		machine->context.len = (uint32_t)r[2];
		return 0;
	/* What they work out is no path's matter. */
	case BPF_FUNC_csum_diff:
	case BPF_FUNC_csum_update:
	case BPF_FUNC_l3_csum_replace:
	case BPF_FUNC_l4_csum_replace:
	case BPF_FUNC_skb_vlan_pop:
	case BPF_FUNC_skb_pull_data:
	/* Nobody is there, and nobody listens. */
	case BPF_FUNC_sk_lookup_udp:
	case BPF_FUNC_sk_release:
	case BPF_FUNC_ringbuf_reserve:
	case BPF_FUNC_ringbuf_submit:
		return 0;
	default:
		machine->walk->failure = "a helper that is not known here";
		return 0;
	}
}

void wgt_program_walk(struct wgt_program *program, struct wgt_walk *walk)
{
	struct machine *machine = calloc(1, sizeof(*machine));
	uint8_t *room = calloc(1, walk->size + HEADROOM + TAILROOM);
	uint64_t arguments[6] = {0};

	walk->instructions = walk->helpers = 0;
	walk->failure = machine && room ? NULL : "no memory";
	if (!walk->failure) {
		machine->program = program;
		machine->walk = walk;
		machine->data = room + HEADROOM;
		machine->data_end = machine->data + walk->size;
		memcpy(machine->data, walk->packet, walk->size);
		machine->context.len = (uint32_t)walk->size;
		machine->context.mark = walk->mark;
		machine->context.ifindex = walk->ifindex;
		machine->context.ingress_ifindex = walk->ingress_ifindex;
		machine->context.protocol = walk->protocol;
		arguments[1] = (uint64_t)&machine->context;
		walk->verdict = (int32_t)wgt_run(machine, 0, arguments, 0);
		walk->mark = machine->context.mark;
	}
	forget(program);
	free(room);
	free(machine);
}
