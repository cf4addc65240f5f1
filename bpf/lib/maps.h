/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps of the data plane, pinned by name and shared by all programs. Not here: the second
 * lock's own (second_lock.h), and scratch memory, which is nobody's to share (parse.h).
 */
#ifndef WGPLANE_LIB_MAPS_H
#define WGPLANE_LIB_MAPS_H

#include "program.h"

WGP_MAP(config, ARRAY, __u32, struct wgp_config, 1, 0);
WGP_MAP(destinations, ARRAY, __u32, struct wgp_destination, WGP_MAX_DESTINATIONS, BPF_F_MMAPABLE);
WGP_MAP(peers, ARRAY, __u32, struct wgp_peer, WGP_MAX_DESTINATIONS, BPF_F_MMAPABLE);
WGP_MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct wgp_counter, WGP_COUNTER_SLOTS, 0);

WGP_MAP(route_addresses4, HASH, struct wgp_address4, struct wgp_route, WGP_MAX_ROUTE_ADDRESSES,
	SPARSE);
WGP_MAP(route_addresses6, HASH, struct wgp_address6, struct wgp_route, WGP_MAX_ROUTE_ADDRESSES,
	SPARSE);
WGP_MAP(route_prefixes4, TRIE, struct wgp_prefix4, struct wgp_route, WGP_MAX_ROUTE_PREFIXES,
	SPARSE);
WGP_MAP(route_prefixes6, TRIE, struct wgp_prefix6, struct wgp_route, WGP_MAX_ROUTE_PREFIXES,
	SPARSE);

WGP_MAP(route_blocks4, HASH, struct wgp_prefix4, struct wgp_route, WGP_MAX_ROUTE_BLOCKS, SPARSE);
WGP_MAP(route_blocks6, HASH, struct wgp_prefix6, struct wgp_route, WGP_MAX_ROUTE_BLOCKS, SPARSE);

WGP_MAP(locals4, HASH, struct wgp_address4, struct wgp_local, WGP_MAX_LOCALS, SPARSE);
WGP_MAP(locals6, HASH, struct wgp_address6, struct wgp_local, WGP_MAX_LOCALS, SPARSE);
WGP_MAP(endpoints4, HASH, struct wgp_address4, struct wgp_endpoint, WGP_MAX_ENDPOINTS, SPARSE);
WGP_MAP(endpoints6, HASH, struct wgp_address6, struct wgp_endpoint, WGP_MAX_ENDPOINTS, SPARSE);

WGP_MAP(interfaces, HASH, __u32, struct wgp_interface, WGP_MAX_INTERFACES, SPARSE);
WGP_MAP(allowed_sources4, TRIE, struct wgp_source4, __u32, WGP_MAX_ALLOWED_SOURCES, SPARSE);
WGP_MAP(allowed_sources6, TRIE, struct wgp_source6, __u32, WGP_MAX_ALLOWED_SOURCES, SPARSE);

WGP_MAP(flows4, HASH, struct wgp_flow_key4, struct wgp_flow, WGP_MAX_FLOWS, SPARSE);
WGP_MAP(flows6, HASH, struct wgp_flow_key6, struct wgp_flow, WGP_MAX_FLOWS, SPARSE);
WGP_MAP(masquerade4, HASH, struct wgp_masquerade_key4, struct wgp_masquerade, WGP_MAX_MASQUERADE,
	SPARSE);
WGP_MAP(masquerade6, HASH, struct wgp_masquerade_key6, struct wgp_masquerade, WGP_MAX_MASQUERADE,
	SPARSE);

WGP_MAP(fragments4, LRU, struct wgp_fragment_key4, struct wgp_fragment_value, WGP_MAX_FRAGMENTS, 0);
WGP_MAP(fragments6, LRU, struct wgp_fragment_key6, struct wgp_fragment_value, WGP_MAX_FRAGMENTS, 0);

WGP_MAP(icmp_limit, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct wgp_icmp_limit, 1, 0);
WGP_MAP(tunnel, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct wgp_tunnel_count, WGP_TUNNEL_COUNT, 0);
WGP_MAP(event_control, ARRAY, __u32, struct wgp_event_control, 1, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, WGP_EVENTS_BYTES);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

#endif
