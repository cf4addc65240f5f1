/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every program begins with: its constants, verdicts, and how a map is defined. */
#ifndef WGPLANE_LIB_PROGRAM_H
#define WGPLANE_LIB_PROGRAM_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "wgplane_abi.h"

/*
 * Let the packet go on. Never TC_ACT_OK, which would end the chain and skip
 * other people's programs on the device.
 */
#define WGP_PASS (-1) /* TC_ACT_UNSPEC */
#define WGP_SHOT 2 /* TC_ACT_SHOT */

/* Set by the loader, constant to the verifier: dead branches are never checked. */
const volatile struct wgp_constants constants = {.link_header_length = 14};

/* Pinned by name, and shared by all programs that name it. */
#define WGP_MAP(map_name, map_type, key_type, value_type, entries, flags)                          \
	struct {                                                                                   \
		__uint(type, map_type);                                                            \
		__uint(max_entries, entries);                                                      \
		__uint(map_flags, flags);                                                          \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                                               \
	} map_name SEC(".maps")

#define HASH BPF_MAP_TYPE_HASH
#define LRU BPF_MAP_TYPE_LRU_HASH
#define TRIE BPF_MAP_TYPE_LPM_TRIE
#define ARRAY BPF_MAP_TYPE_ARRAY
#define SPARSE BPF_F_NO_PREALLOC

#endif
