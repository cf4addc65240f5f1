/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map of the data plane. All are pinned by name and shared by all programs. */
#ifndef WGPLANE_LIB_MAPS_H
#define WGPLANE_LIB_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "wgplane_abi.h"

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
#define TRIE BPF_MAP_TYPE_LPM_TRIE
#define ARRAY BPF_MAP_TYPE_ARRAY
#define SPARSE BPF_F_NO_PREALLOC

WGP_MAP(config, ARRAY, __u32, struct wgp_config, 1, 0);
WGP_MAP(destinations, ARRAY, __u32, struct wgp_destination, WGP_MAX_DESTINATIONS, BPF_F_MMAPABLE);
WGP_MAP(peers, ARRAY, __u32, struct wgp_peer, WGP_MAX_DESTINATIONS, 0);
WGP_MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct wgp_counter, WGP_COUNTER_SLOTS, 0);

WGP_MAP(route_addresses4, HASH, struct wgp_address4, struct wgp_route, WGP_MAX_ROUTE_ADDRESSES,
	SPARSE);
WGP_MAP(route_addresses6, HASH, struct wgp_address6, struct wgp_route, WGP_MAX_ROUTE_ADDRESSES,
	SPARSE);
WGP_MAP(route_prefixes4, TRIE, struct wgp_prefix4, struct wgp_route, WGP_MAX_ROUTE_PREFIXES,
	SPARSE);
WGP_MAP(route_prefixes6, TRIE, struct wgp_prefix6, struct wgp_route, WGP_MAX_ROUTE_PREFIXES,
	SPARSE);

WGP_MAP(locals4, HASH, struct wgp_address4, struct wgp_local, WGP_MAX_LOCALS, SPARSE);
WGP_MAP(locals6, HASH, struct wgp_address6, struct wgp_local, WGP_MAX_LOCALS, SPARSE);
WGP_MAP(endpoints4, HASH, struct wgp_address4, struct wgp_endpoint, WGP_MAX_ENDPOINTS, SPARSE);
WGP_MAP(endpoints6, HASH, struct wgp_address6, struct wgp_endpoint, WGP_MAX_ENDPOINTS, SPARSE);

WGP_MAP(flows4, HASH, struct wgp_flow_key4, struct wgp_flow, WGP_MAX_FLOWS, SPARSE);
WGP_MAP(flows6, HASH, struct wgp_flow_key6, struct wgp_flow, WGP_MAX_FLOWS, SPARSE);
WGP_MAP(masquerade4, HASH, struct wgp_masquerade_key4, struct wgp_masquerade, WGP_MAX_MASQUERADE,
	SPARSE);
WGP_MAP(masquerade6, HASH, struct wgp_masquerade_key6, struct wgp_masquerade, WGP_MAX_MASQUERADE,
	SPARSE);

/* Set by the loader, constant to the verifier: dead branches are never checked. */
const volatile struct wgp_constants constants = {.link_header_length = 14};

#endif
