/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The masquerade's table, and the rewriting of addresses and ports.
 *
 * A mapping has two halves in one hash: OUT (the node's own tuple -> address and
 * port to write) and IN (the reply's tuple -> the node's own).
 */
#ifndef WGPLANE_LIB_MAPPING_H
#define WGPLANE_LIB_MAPPING_H

#include "lookup.h"

static __always_inline int wgp_is_echo_request(const struct wgp_packet *p)
{
	return wgp_is_icmp(p) && p->has_port &&
	       p->icmp_type == (p->family == 4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST);
}

static __always_inline int wgp_same_address(const union wgp_address *a, const union wgp_address *b)
{
	return a->words[0] == b->words[0] && a->words[1] == b->words[1] &&
	       a->words[2] == b->words[2] && a->words[3] == b->words[3];
}

/* The WireGuard device's own address; 0 where there is none yet. */
static __always_inline int wgp_tunnel_address(const struct wgp_config *cfg, __u8 family,
					      union wgp_address *address)
{
	__builtin_memset(address, 0, sizeof(*address));
	if (family == 4)
		address->v4 = cfg->tunnel4;
	else
		__builtin_memcpy(address->bytes, cfg->tunnel6, 16);
	return address->words[0] || address->words[1] || address->words[2] || address->words[3];
}

/* One half's key; the operations below take either family. */
struct wgp_half {
	union wgp_address source;
	union wgp_address destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 direction;
};

static __always_inline void wgp_half_key4(struct wgp_masquerade_key4 *key,
					  const struct wgp_packet *p, const struct wgp_half *half)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->source = half->source.v4;
	key->destination = half->destination.v4;
	key->source_port = half->source_port;
	key->destination_port = half->destination_port;
	key->protocol = p->protocol;
	key->direction = half->direction;
}

static __always_inline void wgp_half_key6(struct wgp_masquerade_key6 *key,
					  const struct wgp_packet *p, const struct wgp_half *half)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->source, half->source.bytes, 16);
	__builtin_memcpy(key->destination, half->destination.bytes, 16);
	key->source_port = half->source_port;
	key->destination_port = half->destination_port;
	key->protocol = p->protocol;
	key->direction = half->direction;
}

static __always_inline struct wgp_masquerade *wgp_half_find(const struct wgp_packet *p,
							    const struct wgp_half *half)
{
	if (p->family == 4) {
		struct wgp_masquerade_key4 key;

		wgp_half_key4(&key, p, half);
		return bpf_map_lookup_elem(&masquerade4, &key);
	} else {
		struct wgp_masquerade_key6 key;

		wgp_half_key6(&key, p, half);
		return bpf_map_lookup_elem(&masquerade6, &key);
	}
}

/*
 * Errors are compared as int: before Linux 6.4 the map helpers return one, and what
 * stands in the upper half of the register then is no sign.
 */
static __always_inline int wgp_half_insert(const struct wgp_packet *p, const struct wgp_half *half,
					   const struct wgp_masquerade *value)
{
	if (p->family == 4) {
		struct wgp_masquerade_key4 key;

		wgp_half_key4(&key, p, half);
		return bpf_map_update_elem(&masquerade4, &key, value, BPF_NOEXIST);
	} else {
		struct wgp_masquerade_key6 key;

		wgp_half_key6(&key, p, half);
		return bpf_map_update_elem(&masquerade6, &key, value, BPF_NOEXIST);
	}
}

static __always_inline void wgp_half_delete(const struct wgp_packet *p, const struct wgp_half *half)
{
	if (p->family == 4) {
		struct wgp_masquerade_key4 key;

		wgp_half_key4(&key, p, half);
		bpf_map_delete_elem(&masquerade4, &key);
	} else {
		struct wgp_masquerade_key6 key;

		wgp_half_key6(&key, p, half);
		bpf_map_delete_elem(&masquerade6, &key);
	}
}

static __always_inline void wgp_half_out(struct wgp_half *half, const struct wgp_packet *p)
{
	half->source = p->source;
	half->destination = p->destination;
	half->source_port = p->source_port;
	half->destination_port = p->destination_port;
	half->direction = WGP_MASQUERADE_OUT;
}

/* Is there a mapping for what the node sends here? */
static __always_inline int wgp_is_masqueraded(const struct wgp_packet *p)
{
	struct wgp_half half;

	wgp_half_out(&half, p);
	return wgp_half_find(p, &half) != NULL;
}

/*
 * Writes a new source (or destination) address and port, and mends the
 * checksums, partial ones too. `port` is ignored where the packet has none.
 * Returns 0 or a reason.
 */
static __always_inline int wgp_rewrite(struct __sk_buff *skb, const struct wgp_packet *p,
				       int is_source, const union wgp_address *address, __be16 port)
{
	const union wgp_address *old = is_source ? &p->source : &p->destination;
	__be16 old_port = is_source || wgp_is_icmp(p) ? p->source_port : p->destination_port;
	__u32 checksum = 0, port_offset = 0;
	__u64 flags = 0;

	if (p->fragment != WGP_FRAGMENT_LATER) {
		if (p->protocol == IPPROTO_TCP) {
			checksum = p->transport_offset + 16;
			port_offset = p->transport_offset + (is_source ? 0 : 2);
		} else if (p->protocol == IPPROTO_UDP) {
			checksum = p->transport_offset + 6;
			port_offset = p->transport_offset + (is_source ? 0 : 2);
			flags = BPF_F_MARK_MANGLED_0;
		} else if (wgp_is_icmp(p)) {
			checksum = p->transport_offset + 2;
			port_offset = p->has_port ? p->transport_offset + 4 : 0;
		}
	}
	if (checksum && port_offset && p->has_port && port != old_port) {
		if (bpf_l4_csum_replace(skb, checksum, old_port, port, flags | 2) ||
		    bpf_skb_store_bytes(skb, port_offset, &port, 2, 0))
			return WGP_REASON_DROP_REWRITE_FAILED;
	}
	if (wgp_same_address(old, address))
		return 0;
	if (p->family == 4) {
		if (checksum && !wgp_is_icmp(p) &&
		    bpf_l4_csum_replace(skb, checksum, old->v4, address->v4,
					flags | BPF_F_PSEUDO_HDR | 4))
			return WGP_REASON_DROP_REWRITE_FAILED;
		if (bpf_l3_csum_replace(skb, p->network_offset + 10, old->v4, address->v4, 4) ||
		    bpf_skb_store_bytes(skb, p->network_offset + (is_source ? 12 : 16),
					&address->v4, 4, 0))
			return WGP_REASON_DROP_REWRITE_FAILED;
	} else {
		__s64 difference =
			bpf_csum_diff((__be32 *)old->words, 16, (__be32 *)address->words, 16, 0);

		if (checksum &&
		    bpf_l4_csum_replace(skb, checksum, 0, difference, flags | BPF_F_PSEUDO_HDR))
			return WGP_REASON_DROP_REWRITE_FAILED;
		if (bpf_skb_store_bytes(skb, p->network_offset + (is_source ? 8 : 24),
					address->bytes, 16, 0))
			return WGP_REASON_DROP_REWRITE_FAILED;
	}
	return 0;
}

#endif
