/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sizes: what does not fit into the tunnel, and the answer that says so: ICMP
 * "fragmentation needed" (RFC 792, 1191) and ICMPv6 "packet too big" (RFC 4443).
 */
#ifndef WGPLANE_LIB_ICMP_H
#define WGPLANE_LIB_ICMP_H

#include "events.h"

#define WGP_ICMP_HEADER 8

/* The tunnel's MTU when a packet, or each segment of one, is larger; else 0. */
static __always_inline __u32 wgp_exceeds(const struct __sk_buff *skb, const struct wgp_packet *p,
					 const struct wgp_config *cfg)
{
	__u32 mtu = p->family == 4 ? cfg->mtu4 : cfg->mtu6;
	__u32 size = skb->len - p->network_offset;

	if (skb->gso_size)
		size = p->payload_offset - p->network_offset + skb->gso_size;
	/* SCTP's segments are of any size, and fit (GSO_BY_FRAGS of the kernel). */
	if (skb->gso_size == WGP_GSO_BY_FRAGS)
		return 0;
	return mtu && size > mtu ? mtu : 0;
}

/* Errors are never answered by errors, nor is what was sent to or from many. */
static __always_inline int wgp_may_answer(const struct wgp_packet *p)
{
	if (p->fragment == WGP_FRAGMENT_LATER)
		return 0;
	if (p->family == 4) {
		__u8 type = p->icmp_type;

		if (p->protocol == IPPROTO_ICMP && type != ICMP_ECHO && type != ICMP_ECHOREPLY)
			return 0;
		return (p->destination.bytes[0] & 0xf0) != 0xe0 && p->source.v4;
	}
	if (p->protocol == IPPROTO_ICMPV6 && p->icmp_type < 128)
		return 0;
	return p->destination.bytes[0] != 0xff;
}

static __always_inline int wgp_icmp_allowed(void)
{
	__u32 zero = 0;
	struct wgp_icmp_limit *limit = bpf_map_lookup_elem(&icmp_limit, &zero);
	__u64 window = wgp_now() / 100000000;

	if (!limit)
		return 0;
	if (limit->window != window) {
		limit->window = window;
		limit->count = 0;
	}
	return limit->count++ < WGP_ICMP_BURST;
}

/* The checksum field's bytes for an unfolded sum (RFC 1071). */
static __always_inline __u16 wgp_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Puts the two MAC addresses the other way round: the packet goes back. */
static __always_inline int wgp_turn_round(struct __sk_buff *skb)
{
	__u8 addresses[12], turned[12];

	if (bpf_skb_load_bytes(skb, 0, addresses, sizeof(addresses)))
		return -1;
	__builtin_memcpy(turned, addresses + 6, 6);
	__builtin_memcpy(turned + 6, addresses, 6);
	return bpf_skb_store_bytes(skb, 0, turned, sizeof(turned), 0);
}

/*
 * Turns a packet into the answer that it is too big: from `tunnel`, the WireGuard device's
 * address, or where that is 0 or not there from the address that it was sent to.
 * A function of its own to the verifier, as are the others marked so: it gets numbers
 * and reads again what it needs, and is checked once. Returns 0, or a negative number.
 */
WGP_FUNCTION int wgp_answer4(struct __sk_buff *skb, __u32 mtu, __u32 tunnel)
{
	struct {
		struct iphdr ip;
		struct wgp_icmp icmp;
		__u8 quote[WGP_ICMP_QUOTE4];
	} answer = {};
	const struct wgp_config *cfg = wgp_config();
	__u32 offset = constants.link_header_length;

	if (bpf_skb_change_tail(skb, offset + WGP_ICMP_QUOTE4, 0) ||
	    bpf_skb_load_bytes(skb, offset, answer.quote, WGP_ICMP_QUOTE4))
		return -1;
	answer.ip.version = 4;
	answer.ip.ihl = 5;
	answer.ip.tot_len = bpf_htons(sizeof(answer));
	answer.ip.ttl = 64;
	answer.ip.protocol = IPPROTO_ICMP;
	__builtin_memcpy(&answer.ip.saddr, answer.quote + 16, 4);
	if (tunnel && cfg && cfg->tunnel4)
		answer.ip.saddr = cfg->tunnel4;
	__builtin_memcpy(&answer.ip.daddr, answer.quote + 12, 4);
	answer.ip.check = wgp_fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip, 20, 0));
	answer.icmp.type = 3; /* destination unreachable */
	answer.icmp.code = 4; /* fragmentation needed and DF set */
	answer.icmp.sequence = bpf_htons(mtu);
	answer.icmp.checksum =
		wgp_fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, 8 + WGP_ICMP_QUOTE4, 0));
	if (bpf_skb_adjust_room(skb, 20 + WGP_ICMP_HEADER, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	return bpf_skb_store_bytes(skb, offset, &answer, 20 + WGP_ICMP_HEADER, 0);
}

WGP_FUNCTION int wgp_answer6(struct __sk_buff *skb, __u32 mtu, __u32 tunnel)
{
	struct {
		struct ipv6hdr ip;
		struct wgp_icmp icmp;
		__u8 quote[WGP_ICMP_QUOTE6];
	} answer = {};
	const struct wgp_config *cfg = wgp_config();
	const __u32 length = WGP_ICMP_HEADER + WGP_ICMP_QUOTE6;
	__u32 offset = constants.link_header_length;
	const __u32 *own;
	__s64 sum;

	if (bpf_skb_change_tail(skb, offset + WGP_ICMP_QUOTE6, 0) ||
	    bpf_skb_load_bytes(skb, offset, answer.quote, WGP_ICMP_QUOTE6))
		return -1;
	answer.ip.version = 6;
	answer.ip.payload_len = bpf_htons(length);
	answer.ip.nexthdr = IPPROTO_ICMPV6;
	answer.ip.hop_limit = 64;
	__builtin_memcpy(&answer.ip.saddr, answer.quote + 24, 16);
	if (tunnel && cfg) {
		own = (const __u32 *)cfg->tunnel6;
		if (own[0] || own[1] || own[2] || own[3])
			__builtin_memcpy(&answer.ip.saddr, cfg->tunnel6, 16);
	}
	__builtin_memcpy(&answer.ip.daddr, answer.quote + 8, 16);
	answer.icmp.type = 2; /* packet too big */
	answer.icmp.sequence = bpf_htons(mtu);
	/* The pseudo header: both addresses, length, next header. */
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip.saddr, 32,
			    bpf_htonl(length + IPPROTO_ICMPV6));
	answer.icmp.checksum =
		wgp_fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, length, sum));
	if (bpf_skb_adjust_room(skb, 40 + WGP_ICMP_HEADER, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	return bpf_skb_store_bytes(skb, offset, &answer, 40 + WGP_ICMP_HEADER, 0);
}

/*
 * Turns a packet that is too big into the answer to it, to be sent back by the device it
 * came from. Returns 0, or a negative number: then it is to be dropped.
 */
static __always_inline int wgp_answer_too_big(struct __sk_buff *skb, const struct wgp_packet *p,
					      __u32 mtu, __u32 tunnel)
{
	int result;

	if (!wgp_may_answer(p) || !wgp_icmp_allowed())
		return -1;
	result = p->family == 4 ? wgp_answer4(skb, mtu, tunnel) : wgp_answer6(skb, mtu, tunnel);
	if (result)
		return result;
	return constants.link_header_length ? wgp_turn_round(skb) : 0;
}

/* The same where the IP header is not in the packet's linear part. */
WGP_FUNCTION int wgp_hop_apart(struct __sk_buff *skb)
{
	const struct wgp_work *w = wgp_work();
	const struct wgp_packet *p;
	__u8 hops;

	if (!w)
		return -1;
	p = &w->packet;
	hops = p->hop_limit - 1;
	if (p->family == 4) {
		__be16 old = bpf_htons(p->hop_limit << 8), new = bpf_htons(hops << 8);

		if (bpf_l3_csum_replace(skb, p->network_offset + 10, old, new, 2))
			return -1;
		return bpf_skb_store_bytes(skb, p->network_offset + 8, &hops, 1, 0);
	}
	return bpf_skb_store_bytes(skb, p->network_offset + 7, &hops, 1, BPF_F_RECOMPUTE_CSUM);
}

/* One hop less to live; who calls has seen that more than one is left. */
static __always_inline int wgp_hop(struct __sk_buff *skb, const struct wgp_packet *p)
{
	void *header = (void *)(long)skb->data + constants.link_header_length;

	/* IPv6's hop limit lies within the length of IPv4's header. */
	if (header + sizeof(struct iphdr) > (void *)(long)skb->data_end)
		return wgp_hop_apart(skb);
	if (p->family == 4) {
		struct iphdr *ip = header;
		__u32 sum = ip->check + bpf_htons(0x0100); /* RFC 1624: one less is added */

		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	} else {
		/* Next header and hop limit; a checksum of the whole packet, where the kernel has one, goes along. */
		__be16 *word = header + 6, old = *word, new = bpf_htons(bpf_ntohs(old) - 1);

		*word = new;
		bpf_csum_update(skb, (__u16)~old + new);
	}
	return 0;
}

/*
 * Lowers the segment size among a SYN's options to a limit. `header` and `end` are where
 * the TCP header begins and ends. Returns 1 when it was more.
 */
WGP_FUNCTION int wgp_lower_mss(struct __sk_buff *skb, __u32 header, __u32 end, __u32 limit)
{
	__u32 offset = header + sizeof(struct tcphdr);

	for (int i = 0; i < 12; i++) {
		__u8 option[4] = {};
		__be16 old, new = bpf_htons(limit);

		if (offset + 4 > end || bpf_skb_load_bytes(skb, offset, option, 4))
			return 0;
		if (option[0] == 0)
			return 0;
		if (option[0] == 1) {
			offset++;
			continue;
		}
		if (option[0] != 2 || option[1] != 4) {
			if (option[1] < 2)
				return 0;
			offset += option[1];
			continue;
		}
		old = bpf_htons(option[2] << 8 | option[3]);
		if (bpf_ntohs(old) <= limit || bpf_skb_store_bytes(skb, offset + 2, &new, 2, 0))
			return 0;
		/* At an odd offset the halves of a word sum the other way round. */
		if ((offset - header) & 1) {
			old = old << 8 | old >> 8;
			new = new << 8 | new >> 8;
		}
		bpf_l4_csum_replace(skb, header + 16, old, new, 2);
		return 1;
	}
	return 0;
}

/* Lowers the segment size that a TCP SYN offers to what the tunnel takes (RFC 9293, 3.7.1). */
static __always_inline void wgp_clamp_mss(struct __sk_buff *skb, const struct wgp_packet *p,
					  const struct wgp_config *cfg, __u32 hook)
{
	__u32 limit = p->family == 4 ? cfg->mss4 : cfg->mss6;

	if (p->protocol == IPPROTO_TCP && (p->tcp_flags & WGP_TCP_SYN) && limit && !p->fragment &&
	    wgp_lower_mss(skb, p->transport_offset, p->payload_offset, limit))
		wgp_count(p, hook, WGP_REASON_MSS_CLAMPED);
}

#endif
