/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a pod may send from. */
#ifndef WGPLANE_LIB_SOURCES_H
#define WGPLANE_LIB_SOURCES_H

#include "lookup.h"

/* What a pod sends before it has an address, and on its link (RFC 2131, 4861, 4862). */
static __always_inline int wgp_is_link_business(const struct wgp_packet *p)
{
	if (wgp_is_link_local(p))
		return 1;
	if (p->source.words[0] || p->source.words[1] || p->source.words[2] || p->source.words[3])
		return 0;
	if (p->family == 6)
		return p->protocol == IPPROTO_ICMPV6;
	return p->protocol == IPPROTO_UDP && p->destination_port == bpf_htons(67);
}

static __always_inline int wgp_is_allowed_source(const struct wgp_packet *p, __u32 ifindex)
{
	if (p->family == 4) {
		struct wgp_source4 key = {
			.prefix_length = 64, .ifindex = ifindex, .address = p->source.v4};

		return bpf_map_lookup_elem(&allowed_sources4, &key) != NULL;
	} else {
		struct wgp_source6 key = {.prefix_length = 160, .ifindex = ifindex};

		__builtin_memcpy(key.address, p->source.bytes, 16);
		return bpf_map_lookup_elem(&allowed_sources6, &key) != NULL;
	}
}

/* Is the source none of this device's pod? Devices of which nobody knows the pod are not judged. */
static __always_inline int wgp_is_spoofed(const struct wgp_packet *p, __u32 ifindex)
{
	const struct wgp_local *local = wgp_local(p->family, &p->source);
	const struct wgp_interface *interface;

	if (local && local->kind == WGP_LOCAL_POD && (!local->ifindex || local->ifindex == ifindex))
		return 0;
	interface = bpf_map_lookup_elem(&interfaces, &ifindex);
	if (!interface || !(interface->flags & WGP_INTERFACE_CHECKED))
		return 0;
	return !wgp_is_link_business(p) && !wgp_is_allowed_source(p, ifindex);
}

#endif
