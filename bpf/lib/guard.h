/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What must not travel in clear, and what an overlay's packet carries. */
#ifndef WGPLANE_LIB_GUARD_H
#define WGPLANE_LIB_GUARD_H

#include "lookup.h"

/* Protocol numbers of IP in IP (RFC 2003, RFC 4213). */
#define WGP_PROTOCOL_IPIP 4
#define WGP_PROTOCOL_6IN4 41

#define WGP_VXLAN_HEADER 8 /* RFC 7348 */

static __always_inline int wgp_is_exempt_slot(__u32 slot)
{
	const struct wgp_destination *destination = wgp_destination(slot);

	return destination && (wgp_word(destination) & WGP_WORD_ACTION_MASK) == WGP_ACTION_EXEMPT;
}

static __always_inline int wgp_are_guarded(const struct wgp_config *cfg, __u8 family,
					   const union wgp_address *from,
					   const union wgp_address *to)
{
	__u32 source, destination;

	if (!(cfg->flags & (family == 4 ? WGP_CONFIG_ENABLED4 : WGP_CONFIG_ENABLED6)))
		return 0;
	source = wgp_slot_of(family, from);
	destination = wgp_slot_of(family, to);
	return source >= WGP_SLOT_POOL && destination >= WGP_SLOT_POOL &&
	       !wgp_is_exempt_slot(source) && !wgp_is_exempt_slot(destination);
}

/* Is what begins at an offset an IP packet from pod to pod? */
WGP_FUNCTION int wgp_is_pods(struct __sk_buff *skb, __u32 offset)
{
	const struct wgp_config *cfg = wgp_config();
	union wgp_address source = {}, destination = {};
	__u8 header[40];

	if (!cfg || bpf_skb_load_bytes(skb, offset, header, 20))
		return 0;
	if (header[0] >> 4 == 4) {
		__builtin_memcpy(source.bytes, header + 12, 4);
		__builtin_memcpy(destination.bytes, header + 16, 4);
		return wgp_are_guarded(cfg, 4, &source, &destination);
	}
	if (header[0] >> 4 != 6 || bpf_skb_load_bytes(skb, offset, header, 40))
		return 0;
	__builtin_memcpy(source.bytes, header + 8, 16);
	__builtin_memcpy(destination.bytes, header + 24, 16);
	return wgp_are_guarded(cfg, 6, &source, &destination);
}

/* Does the packet carry one between pods, as VXLAN and IP in IP do? */
static __always_inline int wgp_carries_pods(struct __sk_buff *skb, const struct wgp_packet *p,
					    const struct wgp_config *cfg)
{
	__u32 offset = p->transport_offset;
	__be16 type;

	if (p->fragment == WGP_FRAGMENT_LATER)
		return 0;
	if (p->protocol == IPPROTO_UDP) {
		__u16 port = bpf_ntohs(p->destination_port);

		if (!port || (port != cfg->vxlan_ports[0] && port != cfg->vxlan_ports[1]))
			return 0;
		offset += 8 + WGP_VXLAN_HEADER + ETH_HLEN;
		if (bpf_skb_load_bytes(skb, offset - 2, &type, 2) ||
		    (type != bpf_htons(ETH_P_IP) && type != bpf_htons(ETH_P_IPV6)))
			return 0;
	} else if (p->protocol != WGP_PROTOCOL_IPIP && p->protocol != WGP_PROTOCOL_6IN4) {
		return 0;
	}
	return wgp_is_pods(skb, offset);
}

/* Has the operator named one of two ports (network order, in the halves of a word)? */
WGP_FUNCTION int wgp_names_port(__u32 ports, __u32 protocol)
{
	const struct wgp_config *cfg = wgp_config();
	__u16 source = bpf_ntohs(ports >> 16), destination = bpf_ntohs(ports & 0xffff);

	if (!cfg)
		return 0;
	for (__u32 i = 0; i < WGP_MAX_EXEMPT_PORTS; i++) {
		const struct wgp_port_range *range = &cfg->exempt[i];

		if (i >= cfg->exempt_count)
			return 0;
		if (range->protocol == protocol &&
		    ((source >= range->first && source <= range->last) ||
		     (destination >= range->first && destination <= range->last)))
			return 1;
	}
	return 0;
}

/*
 * What stays in clear between nodes under host encryption: neighbour discovery
 * (RFC 4861), and ports that the operator has named, on either side.
 */
static __always_inline int wgp_is_exempt_port(const struct wgp_packet *p)
{
	if (p->family == 6 && p->protocol == IPPROTO_ICMPV6)
		return p->icmp_type >= 133 && p->icmp_type <= 137;
	/* Fragments share one entry, so none of them is judged by its port. */
	if (!p->has_port || wgp_is_icmp(p) || p->fragment)
		return 0;
	return wgp_names_port((__u32)p->source_port << 16 | p->destination_port, p->protocol);
}

#endif
