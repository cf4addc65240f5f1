/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Source translation of the node's own traffic into the tunnel, and back.
 *
 * Of a mapping's two halves IN is inserted first and claims the port; without its
 * OUT half it is taken back.
 */
#ifndef WGPLANE_LIB_MASQUERADE_H
#define WGPLANE_LIB_MASQUERADE_H

#include "errors.h"
#include "fragments.h"

#define WGP_EEXIST 17

/* The half by which the answer to a mapping's packets comes. */
static __always_inline void wgp_half_in(struct wgp_half *half, const struct wgp_packet *p,
					const union wgp_address *tunnel, __be16 port)
{
	__builtin_memset(half, 0, sizeof(*half));
	half->source = p->destination;
	half->destination = *tunnel;
	half->direction = WGP_MASQUERADE_IN;
	if (wgp_is_icmp(p)) {
		half->source_port = port;
	} else {
		half->source_port = p->destination_port;
		half->destination_port = port;
	}
}

/* A mapping is used: by a new connection on its tuple, from now on without a past. */
static __always_inline void wgp_masquerade_use(struct wgp_masquerade *mapping,
					       const struct wgp_packet *p)
{
	mapping->last_ns = wgp_now();
	if (wgp_starts_connection(p))
		mapping->tcp_flags = p->tcp_flags;
	else
		mapping->tcp_flags |= p->tcp_flags;
}

/* Makes both halves of a mapping. Returns 0 and the port to write, or a reason. */
static __always_inline int wgp_masquerade_allocate(const struct wgp_packet *p,
						   const struct wgp_config *cfg,
						   const union wgp_address *tunnel, __be16 *port)
{
	struct wgp_masquerade in = {}, out = {};
	struct wgp_half half_in = {}, half_out;
	__u32 span = cfg->port_max - cfg->port_min + 1;
	int fixed = !p->has_port || wgp_same_address(&p->source, tunnel);
	int claimed = 0;

	in.last_ns = out.last_ns = wgp_now();
	__builtin_memcpy(in.address, p->source.bytes, 16);
	__builtin_memcpy(out.address, tunnel->bytes, 16);
	in.port = p->source_port;
	*port = p->source_port;
	for (int i = 0; i < WGP_MASQUERADE_TRIES; i++) {
		int error;

		if (i)
			*port = bpf_htons(cfg->port_min +
					  bpf_get_prandom_u32() % (span ? span : 1));
		wgp_half_in(&half_in, p, tunnel, *port);
		error = wgp_half_insert(p, &half_in, &in);
		if (!error) {
			claimed = 1;
			break;
		}
		if (error != -WGP_EEXIST) {
			/* What needs no translation needs no mapping either. */
			if (wgp_same_address(&p->source, tunnel)) {
				*port = p->source_port;
				return 0;
			}
			return WGP_REASON_DROP_MASQUERADE_FULL;
		}
		if (fixed)
			break;
	}
	if (!claimed)
		return WGP_REASON_DROP_MASQUERADE_EXHAUSTED;
	out.port = *port;
	wgp_half_out(&half_out, p);
	if (wgp_half_insert(p, &half_out, &out)) {
		struct wgp_masquerade *first = wgp_half_find(p, &half_out);

		/* Another CPU was first with this flow: its mapping holds. */
		wgp_half_delete(p, &half_in);
		if (!first)
			return WGP_REASON_DROP_MASQUERADE_FULL;
		*port = first->port;
	}
	return 0;
}

/*
 * At the WireGuard device's egress: the node's own source becomes the device's.
 * Returns 0 or a reason; the verdict's port is the mapping's, 0 where there is none.
 */
WGP_FUNCTION int wgp_masquerade_out(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	struct wgp_work *w = wgp_work();
	const struct wgp_packet *p;
	union wgp_address tunnel;
	struct wgp_masquerade *mapping;
	struct wgp_half half;
	__be16 port;
	int reason;

	if (!w || !cfg)
		return WGP_REASON_DROP_REWRITE_FAILED;
	p = &w->packet;
	w->verdict.port = 0;
	if (!wgp_tunnel_address(cfg, p->family, &tunnel))
		return WGP_REASON_DROP_MASQUERADE_NO_ADDRESS;
	/* Later fragments have no port; whatever the first one's is, the address is this. */
	if (p->fragment == WGP_FRAGMENT_LATER)
		return wgp_rewrite(skb, p, 1, &tunnel, 0);
	if (wgp_is_icmp(p) && !wgp_is_echo_request(p))
		return wgp_rewrite(skb, p, 1, &tunnel, p->source_port);
	wgp_half_out(&half, p);
	mapping = wgp_half_find(p, &half);
	/* Made when the device had another address: nobody answers to that. */
	if (mapping && !wgp_same_address((union wgp_address *)mapping->address, &tunnel)) {
		wgp_half_delete(p, &half);
		mapping = NULL;
	}
	if (mapping) {
		wgp_masquerade_use(mapping, p);
		port = mapping->port;
		if (wgp_starts_connection(p)) {
			wgp_half_in(&half, p, &tunnel, port);
			mapping = wgp_half_find(p, &half);
			if (mapping)
				mapping->tcp_flags = 0;
		}
	} else {
		reason = wgp_masquerade_allocate(p, cfg, &tunnel, &port);
		if (reason)
			return reason;
	}
	w->verdict.port = port;
	return wgp_rewrite(skb, p, 1, &tunnel, port);
}

/*
 * At its ingress: the reply's destination becomes the node's own again, in the
 * packet and in what was parsed of it. Returns 0 when there is no mapping, 1 when
 * rewritten, or a (negative) reason.
 */
WGP_FUNCTION int wgp_masquerade_in(struct __sk_buff *skb)
{
	struct wgp_work *w = wgp_work();
	struct wgp_packet *p;
	struct wgp_half half;
	struct wgp_masquerade *mapping;
	union wgp_address address;
	__be16 port;
	int reason;

	if (!w)
		return 0;
	p = &w->packet;
	if (p->fragment == WGP_FRAGMENT_LATER) {
		if (!wgp_fragment_find(p, &address))
			return -WGP_REASON_DROP_FRAGMENT_EARLY;
		if (wgp_same_address(&address, &p->destination))
			return 0;
		reason = wgp_rewrite(skb, p, 0, &address, 0);
		if (reason)
			return -reason;
		p->destination = address;
		return 1;
	}
	half.source = p->source;
	half.destination = p->destination;
	half.source_port = p->source_port;
	half.destination_port = p->destination_port;
	half.direction = WGP_MASQUERADE_IN;
	mapping = wgp_half_find(p, &half);
	if (!mapping) {
		if (p->fragment)
			wgp_fragment_note(p, &p->destination);
		return 0;
	}
	wgp_masquerade_use(mapping, p);
	__builtin_memcpy(address.bytes, mapping->address, 16);
	port = mapping->port;
	if (p->fragment)
		wgp_fragment_note(p, &address);
	reason = wgp_rewrite(skb, p, 0, &address, port);
	if (reason)
		return -reason;
	p->destination = address;
	if (wgp_is_icmp(p))
		p->source_port = port;
	else
		p->destination_port = port;
	return 1;
}

#endif
