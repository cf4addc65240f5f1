/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Strict mode's second lock: small, with maps of its own, attached as the hooks are, and behind
 * them. Whatever goes wrong there, no packet from a pod to a pod
 * crosses an uplink in clear, plain or in VXLAN or IP in IP. It knows prefixes and nothing else: what is
 * behind a VLAN tag in the frame, or behind extension headers of a wrapper, is the hooks' matter alone.
 */
#ifndef WGPLANE_LIB_SECOND_LOCK_H
#define WGPLANE_LIB_SECOND_LOCK_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include "program.h"

WGP_MAP(guard_prefixes4, TRIE, struct wgp_prefix4, struct wgp_guard_prefix, WGP_MAX_GUARD_PREFIXES,
	SPARSE);
WGP_MAP(guard_prefixes6, TRIE, struct wgp_prefix6, struct wgp_guard_prefix, WGP_MAX_GUARD_PREFIXES,
	SPARSE);
WGP_MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct wgp_counter, WGP_COUNTER_SLOTS, 0);

static __always_inline int wgp_is_guarded4(const __u8 *address)
{
	struct wgp_prefix4 key = {.prefix_length = 32};
	const struct wgp_guard_prefix *prefix;

	__builtin_memcpy(&key.address, address, 4);
	prefix = bpf_map_lookup_elem(&guard_prefixes4, &key);
	return prefix && prefix->kind == WGP_GUARD_POOL;
}

static __always_inline int wgp_is_guarded6(const __u8 *address)
{
	struct wgp_prefix6 key = {.prefix_length = 128};
	const struct wgp_guard_prefix *prefix;

	__builtin_memcpy(key.address, address, 16);
	prefix = bpf_map_lookup_elem(&guard_prefixes6, &key);
	return prefix && prefix->kind == WGP_GUARD_POOL;
}

/* Is what begins at an offset an IP packet from pod to pod? */
static __always_inline int wgp_is_pods(struct __sk_buff *skb, __u32 offset)
{
	__u8 header[40];

	if (bpf_skb_load_bytes(skb, offset, header, 20))
		return 0;
	if (header[0] >> 4 == 4)
		return wgp_is_guarded4(header + 12) && wgp_is_guarded4(header + 16);
	if (header[0] >> 4 != 6 || bpf_skb_load_bytes(skb, offset, header, 40))
		return 0;
	return wgp_is_guarded6(header + 8) && wgp_is_guarded6(header + 24);
}

/* Where the packet inside a VXLAN or IP-in-IP one of IPv4 or IPv6 begins; 0: there is none. */
static __always_inline __u32 wgp_inner_offset(struct __sk_buff *skb, __u32 offset)
{
	__u8 header[20], protocol;
	__be16 port;

	if (bpf_skb_load_bytes(skb, offset, header, 20))
		return 0;
	if (header[0] >> 4 == 4) {
		/* Later fragments have no header to read. */
		if (header[7] || (header[6] & 0x1f))
			return 0;
		protocol = header[9];
		offset += (header[0] & 15) * 4;
	} else {
		protocol = header[6];
		offset += 40;
	}
	if (protocol == 4 || protocol == 41)
		return offset;
	if (protocol != IPPROTO_UDP || bpf_skb_load_bytes(skb, offset + 2, &port, 2) || !port)
		return 0;
	if (port != bpf_htons(constants.vxlan_ports[0]) &&
	    port != bpf_htons(constants.vxlan_ports[1]))
		return 0;
	return offset + 8 + 8 + ETH_HLEN;
}

static __always_inline int wgp_second_lock(struct __sk_buff *skb, __u32 hook)
{
	__u32 offset = constants.link_header_length, inner;
	__u32 reason =
		hook == WGP_HOOK_GUARD_IN ? WGP_REASON_DROP_CLEAR_ARRIVED : WGP_REASON_DROP_CLEAR;
	struct wgp_counter *counter;
	__u32 index;

	if (offset && skb->protocol != bpf_htons(ETH_P_IP) &&
	    skb->protocol != bpf_htons(ETH_P_IPV6))
		return WGP_PASS;
	if (!wgp_is_pods(skb, offset)) {
		inner = wgp_inner_offset(skb, offset);
		if (!inner || !wgp_is_pods(skb, inner))
			return WGP_PASS;
		reason = WGP_REASON_DROP_ENCAPSULATED;
	}
	index = reason * WGP_HOOK_COUNT + hook;
	counter = bpf_map_lookup_elem(&counters, &index);
	if (counter) {
		counter->packets += skb->gso_segs > 1 ? skb->gso_segs : 1;
		counter->bytes += skb->len - offset;
	}
	return WGP_SHOT;
}

#endif
