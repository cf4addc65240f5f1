/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about masqueraded packets: what they quote is translated too, or the
 * socket that is meant never hears of it (RFC 5508, 4).
 */
#ifndef WGPLANE_LIB_ERRORS_H
#define WGPLANE_LIB_ERRORS_H

#include "icmp.h"
#include "mapping.h"

/* Does the packet quote another one? */
static __always_inline int wgp_is_icmp_error(const struct wgp_packet *p)
{
	if (!wgp_is_icmp(p) || p->fragment)
		return 0;
	if (p->family == 6)
		return p->icmp_type >= 1 && p->icmp_type <= 4;
	/* Unreachable, source quench, redirect, time exceeded, parameter problem. */
	return p->icmp_type == 3 || p->icmp_type == 4 || p->icmp_type == 5 || p->icmp_type == 11 ||
	       p->icmp_type == 12;
}

/* Reads the packet that an error quotes into wgp_work()->quoted, with absolute offsets. */
WGP_FUNCTION int wgp_quoted(struct __sk_buff *skb)
{
	struct wgp_work *w = wgp_work();
	const struct wgp_packet *p;
	struct wgp_packet *inner;
	__u32 offset;
	__be16 words[4];

	if (!w)
		return -1;
	p = &w->packet;
	inner = &w->quoted;
	offset = p->transport_offset + WGP_ICMP_HEADER;
	__builtin_memset(inner, 0, sizeof(*inner));
	inner->family = p->family;
	inner->network_offset = offset;
	if (p->family == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 4 ||
		    ip.ihl < 5)
			return -1;
		inner->protocol = ip.protocol;
		inner->source.v4 = ip.saddr;
		inner->destination.v4 = ip.daddr;
		inner->transport_offset = offset + ip.ihl * 4;
		if (ip.frag_off & bpf_htons(WGP_IP_OFFSET_MASK))
			inner->fragment = WGP_FRAGMENT_LATER;
	} else {
		struct ipv6hdr ip;
		struct wgp_extension extension;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 6)
			return -1;
		inner->protocol = ip.nexthdr;
		__builtin_memcpy(&inner->source, &ip.saddr, 16);
		__builtin_memcpy(&inner->destination, &ip.daddr, 16);
		inner->transport_offset = offset + sizeof(ip);
		if (ip.nexthdr == IPPROTO_FRAGMENT) {
			if (bpf_skb_load_bytes(skb, inner->transport_offset, &extension,
					       sizeof(extension)))
				return -1;
			inner->protocol = extension.next;
			inner->transport_offset += sizeof(extension);
			if (extension.fragment & bpf_htons(0xfff8))
				inner->fragment = WGP_FRAGMENT_LATER;
		}
	}
	if (inner->fragment || (inner->protocol != IPPROTO_TCP && inner->protocol != IPPROTO_UDP &&
				!wgp_is_icmp(inner)))
		return 0;
	if (bpf_skb_load_bytes(skb, inner->transport_offset, words, sizeof(words)))
		return -1;
	inner->has_port = 1;
	if (wgp_is_icmp(inner)) {
		inner->icmp_type = bpf_ntohs(words[0]) >> 8;
		inner->source_port = words[2];
	} else {
		inner->source_port = words[0];
		inner->destination_port = words[1];
	}
	return 0;
}

/*
 * Rewrites one side of the quoted packet (is_source: as the node itself had sent it) and
 * mends its checksums and the error's own. The addresses of the error are the caller's:
 * `outer` is what their change adds to the pseudo header's sum (IPv6).
 */
static __always_inline int wgp_rewrite_quoted(struct __sk_buff *skb, const struct wgp_packet *p,
					      const struct wgp_packet *inner, int is_source,
					      const union wgp_address *address, __be16 port)
{
	const union wgp_address *old = is_source ? &inner->source : &inner->destination;
	__u32 size = p->family == 4 ? 4 : 16;
	__u32 at = p->family == 4 ? (is_source ? 12 : 16) : (is_source ? 8 : 24);
	__be16 old_port =
		is_source || wgp_is_icmp(inner) ? inner->source_port : inner->destination_port;
	__be16 ports[2] = {old_port, 0}, new_ports[2] = {port, 0};
	__u32 checksum_at = 0, port_at = 0;
	__s64 addresses, transport, sum = 0;
	__be16 check[2] = {}, new_check[2] = {};

	addresses = bpf_csum_diff((__be32 *)old->words, 16, (__be32 *)address->words, 16, 0);
	transport = addresses;
	if (inner->has_port) {
		port_at = inner->transport_offset + (is_source ? 0 : 2);
		checksum_at = inner->transport_offset + 6;
		if (wgp_is_icmp(inner)) {
			port_at = inner->transport_offset + 4;
			checksum_at = inner->transport_offset + 2;
			/* ICMP has no pseudo header. */
			if (inner->family == 4)
				transport = 0;
		} else if (inner->protocol == IPPROTO_TCP) {
			checksum_at = inner->transport_offset + 16;
		}
	}
	/* Addresses; in IPv4 with a checksum that takes their change back. */
	if (bpf_skb_store_bytes(skb, inner->network_offset + at, address->bytes, size, 0))
		return -1;
	if (p->family == 6)
		sum = addresses;
	else if (bpf_l3_csum_replace(skb, inner->network_offset + 10, 0, addresses, 0))
		return -1;
	if (!inner->has_port)
		goto outer;
	if (bpf_skb_store_bytes(skb, port_at, &port, 2, 0))
		return -1;
	sum = bpf_csum_diff((__be32 *)ports, 4, (__be32 *)new_ports, 4, sum);
	transport = bpf_csum_diff((__be32 *)ports, 4, (__be32 *)new_ports, 4, transport);
	/* A short quote ends before TCP's checksum; UDP may have none. */
	if (!bpf_skb_load_bytes(skb, checksum_at, check, 2) &&
	    (check[0] || inner->protocol != IPPROTO_UDP)) {
		new_check[0] = wgp_fold((__u64)(__u16)~check[0] + (__u32)transport);
		if (bpf_skb_store_bytes(skb, checksum_at, new_check, 2, 0))
			return -1;
		sum = bpf_csum_diff((__be32 *)check, 4, (__be32 *)new_check, 4, sum);
	}
outer:
	return bpf_l4_csum_replace(skb, p->transport_offset + 2, 0, sum, 0);
}

/* The half that has what an error quotes, which went the other way. */
static __always_inline void wgp_half_of_quoted(struct wgp_half *half,
					       const struct wgp_packet *inner, __u8 direction)
{
	half->source = inner->destination;
	half->destination = inner->source;
	half->direction = direction;
	if (wgp_is_icmp(inner)) {
		half->source_port = inner->source_port;
	} else {
		half->source_port = inner->destination_port;
		half->destination_port = inner->source_port;
	}
}

/*
 * An error of the node about a reply that came through the tunnel: it leaves with the
 * tunnel's address, and quotes the reply as the far side had sent it.
 */
WGP_FUNCTION int wgp_error_out(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	struct wgp_work *w = wgp_work();
	struct wgp_masquerade *mapping;
	struct wgp_packet *p, *inner;
	union wgp_address tunnel;
	struct wgp_half half = {};
	union wgp_address address;

	if (!w || !cfg || !wgp_tunnel_address(cfg, w->packet.family, &tunnel))
		return WGP_REASON_DROP_MASQUERADE_NO_ADDRESS;
	p = &w->packet;
	inner = &w->quoted;
	if (!wgp_quoted(skb)) {
		wgp_half_of_quoted(&half, inner, WGP_MASQUERADE_OUT);
		mapping = wgp_half_find(inner, &half);
		if (mapping) {
			__builtin_memcpy(address.bytes, mapping->address, 16);
			if (wgp_rewrite_quoted(skb, p, inner, 0, &address, mapping->port))
				return WGP_REASON_DROP_REWRITE_FAILED;
		}
	}
	return wgp_rewrite(skb, p, 1, &tunnel, 0);
}

/*
 * An error that came through the tunnel about a masqueraded packet: it goes to the
 * node's own address, and quotes the packet as the node had sent it. Returns 0 when it
 * is about none, 1 when rewritten, or a (negative) reason.
 */
WGP_FUNCTION int wgp_error_in(struct __sk_buff *skb)
{
	struct wgp_work *w = wgp_work();
	struct wgp_masquerade *mapping;
	struct wgp_packet *p, *inner;
	struct wgp_half half = {};
	union wgp_address address;
	int reason;

	if (!w || wgp_quoted(skb))
		return 0;
	p = &w->packet;
	inner = &w->quoted;
	wgp_half_of_quoted(&half, inner, WGP_MASQUERADE_IN);
	mapping = wgp_half_find(inner, &half);
	if (!mapping)
		return 0;
	__builtin_memcpy(address.bytes, mapping->address, 16);
	if (wgp_rewrite_quoted(skb, p, inner, 1, &address, mapping->port))
		return -WGP_REASON_DROP_REWRITE_FAILED;
	reason = wgp_rewrite(skb, p, 0, &address, 0);
	if (reason)
		return -reason;
	p->destination = address;
	return 1;
}

#endif
