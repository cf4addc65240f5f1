/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What goes into WireGuard and comes out, in bytes of WireGuard's own messages, so that its
 * transfer counters can be held against it.
 */
#ifndef WGPLANE_LIB_TUNNEL_H
#define WGPLANE_LIB_TUNNEL_H

#include "lookup.h"

/*
 * Shorter content is padded whole, as far as can be told: other nodes' devices and routes seldom have a lower MTU
 * than IPv6 asks for, or than our own device has where that is lower.
 */
#define WGP_LEAST_MTU 1280
/* What segments of tunnels and of SCTP repeat beside the first header: VXLAN, Ethernet, IPv6, TCP with options. */
#define WGP_INNER_HEADERS 128

/*
 * Content is padded to 16 bytes, but not beyond the MTU, which WireGuard takes from the route or the device. Where
 * that is another's, and may leave no room, the padding is `slack`.
 */
static __always_inline __u32 wgp_padding(__u32 size, __u32 mtu, int is_exact, __u64 *slack)
{
	__u32 rest = is_exact && mtu && size > mtu ? size % mtu : size;
	__u32 padded = (rest + WGP_MESSAGE_PADDING - 1) & ~(WGP_MESSAGE_PADDING - 1);

	if (is_exact)
		return mtu && padded > mtu ? mtu - rest : padded - rest;
	if (padded <= (mtu && mtu < WGP_LEAST_MTU ? mtu : WGP_LEAST_MTU))
		return padded - rest;
	*slack += padded - rest;
	return 0;
}

/*
 * Counts packets of one family. Of GSO ones `header` is what each segment repeats; only of TCP's is it known whether
 * that is all, and how long each is.
 */
static __always_inline void wgp_tunnel_count(const struct __sk_buff *skb,
					     const struct wgp_config *cfg, __u32 index, __u32 size,
					     __u32 header, int is_tcp, int is_exact)
{
	struct wgp_tunnel_count *count;
	__u32 mtu = index & 1 ? cfg->mtu6 : cfg->mtu4;
	__u32 segment = skb->gso_size, told = skb->gso_segs, segments = 1, last = size;
	__u64 bytes = size, messages = 0, slack = 0;

	count = bpf_map_lookup_elem(&tunnel, &index);
	if (!count)
		return;
	if (segment && segment != WGP_GSO_BY_FRAGS && size > header + segment)
		segments += (size - header - 1) / segment;
	if (segment && (!is_tcp || segment == WGP_GSO_BY_FRAGS || (told && told != segments))) {
		if (told)
			segments = told;
		bytes += (__u64)(segments - 1) * header;
		messages = bytes + (__u64)segments * WGP_MESSAGE_OVERHEAD;
		slack = (__u64)segments * (WGP_MESSAGE_PADDING - 1) +
			(__u64)(segments - 1) * WGP_INNER_HEADERS;
	} else {
		if (segments > 1) {
			__u32 whole = segments - 1;
			__u64 more = 0;

			last = size - whole * segment;
			bytes += (__u64)whole * header;
			messages = (__u64)whole *
				   (header + segment +
				    wgp_padding(header + segment, mtu, is_exact, &more) +
				    WGP_MESSAGE_OVERHEAD);
			slack = whole * more;
		}
		messages += last + wgp_padding(last, mtu, is_exact, &slack) + WGP_MESSAGE_OVERHEAD;
	}
	count->packets += segments;
	count->bytes += bytes;
	count->message_bytes += messages;
	count->slack += slack;
}

#endif
