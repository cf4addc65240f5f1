/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What goes into WireGuard and comes out, in bytes of WireGuard's own messages, so that its
 * transfer counters can be held against it.
 */
#ifndef WGPLANE_LIB_TUNNEL_H
#define WGPLANE_LIB_TUNNEL_H

#include "lookup.h"

/* Content is padded to 16 bytes, but not beyond the MTU, which WireGuard takes from the route or the device. */
static __always_inline __u32 wgp_padding(__u32 size, __u32 mtu, __u64 *slack)
{
	__u32 rest = mtu && size > mtu ? size % mtu : size;
	__u32 padded = (rest + WGP_MESSAGE_PADDING - 1) & ~(WGP_MESSAGE_PADDING - 1);

	if (!mtu || padded <= mtu)
		return padded - rest;
	*slack += padded - mtu;
	return mtu - rest;
}

/* Counts packets of one family. Of GSO ones `header` is what each segment repeats. */
static __always_inline void wgp_tunnel_count(const struct __sk_buff *skb,
					     const struct wgp_config *cfg, __u32 index, __u32 size,
					     __u32 header, int is_exact)
{
	struct wgp_tunnel_count *count;
	__u32 mtu = index & 1 ? cfg->mtu6 : cfg->mtu4;
	__u32 segment = skb->gso_size, segments = 1, last = size;
	__u64 bytes = size, messages = 0, slack = 0;

	count = bpf_map_lookup_elem(&tunnel, &index);
	if (!count)
		return;
	if (segment && segment != WGP_GSO_BY_FRAGS && size > header + segment) {
		__u32 payload = size - header;
		__u32 whole = (payload - 1) / segment;
		__u64 more = 0;

		last = header + payload - whole * segment;
		segments += whole;
		bytes += (__u64)whole * header;
		messages = (__u64)whole *
			   (header + segment + wgp_padding(header + segment, mtu, &more) +
			    WGP_MESSAGE_OVERHEAD);
		slack = whole * more;
	}
	messages += last + wgp_padding(last, mtu, &slack) + WGP_MESSAGE_OVERHEAD;
	count->packets += segments;
	count->bytes += bytes;
	count->message_bytes += messages;
	if (!is_exact)
		count->slack += slack;
}

#endif
