/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The decision of from_pod and to_uplink: a flow's entry, found or made, and what its
 * destination wants now.
 */
#ifndef WGPLANE_LIB_STEER_H
#define WGPLANE_LIB_STEER_H

#include "conntrack.h"
#include "flow.h"
#include "guard.h"
#include "icmp.h"
#include "mapping.h"
#include "sources.h"

/*
 * Does the host answer, or go on with, something that began outside the
 * tunnel? It must go on there: masqueraded, it would reach its peer from an
 * address that the peer does not know. In strict mode the beginning must have been seen.
 */
static __always_inline int wgp_host_continues(const struct wgp_packet *p,
					      const struct wgp_config *cfg,
					      const struct wgp_context *context)
{
	const struct wgp_flow *begun;

	/* Errors quote what came through the tunnel: they may go nowhere else. */
	if (wgp_is_icmp(p))
		return p->has_port && !wgp_is_echo_request(p);
	/* Fragments share one entry; what has a mapping has begun in the tunnel. */
	if (p->fragment || wgp_is_masqueraded(p))
		return 0;
	if (p->protocol == IPPROTO_TCP) {
		if (wgp_starts_connection(p))
			return 0;
		if (!(cfg->flags & WGP_CONFIG_STRICT))
			return 1;
	}
	begun = context->reply_ifindex ? wgp_flow_find(p, context->reply_ifindex, 1) : NULL;
	if (!begun)
		return 0;
	return p->protocol != IPPROTO_TCP || (begun->tcp_flags & WGP_TCP_SYN);
}

/*
 * Who may be steered: the far peer accepts local pods' own addresses, and the
 * node's once they are masqueraded. Returns enum wgp_flow_flag bits.
 */
static __always_inline __u32 wgp_source_flags(const struct wgp_packet *p,
					      const struct wgp_config *cfg,
					      const struct wgp_context *context)
{
	const struct wgp_local *local = wgp_local(p->family, &p->source);
	__u32 ifindex = context->ifindex;

	if (!local) {
		__u32 slot = wgp_slot_of(p->family, &p->source);

		/* A pod that nobody has told us of, or no more: its address is of our blocks. */
		if (slot == WGP_SLOT_LOCAL && ifindex)
			return WGP_FLOW_PROMISED;
		/* What comes out of a pod's device is a pod's, whoever knows its address yet. */
		return WGP_FLOW_PASS |
		       (slot != WGP_SLOT_OUTSIDE || context->is_pod ? WGP_FLOW_PROMISED : 0);
	}
	if (local->kind == WGP_LOCAL_POD)
		return WGP_FLOW_PROMISED |
		       (local->ifindex && ifindex && local->ifindex != ifindex ? WGP_FLOW_PASS : 0);
	/* The node's address on what came from elsewhere: netfilter has put it there. */
	if ((cfg->flags & WGP_CONFIG_HOSTS) && wgp_endpoint(p->family, &p->destination) &&
	    wgp_is_exempt_port(p))
		return WGP_FLOW_HOST | WGP_FLOW_PASS | WGP_FLOW_EXEMPT;
	/* What speaks from the tunnel's address was spoken to through the tunnel. */
	if (local->kind == WGP_LOCAL_TUNNEL)
		return WGP_FLOW_HOST | WGP_FLOW_PROMISED;
	return WGP_FLOW_HOST |
	       (wgp_host_continues(p, cfg, context) ? WGP_FLOW_PASS : WGP_FLOW_PROMISED);
}

/*
 * A connection that the host begins while its peer is not ready goes in clear and
 * cannot change to the tunnel: there it would have another source address.
 */
static __always_inline __u32 wgp_stays_clear(const struct wgp_packet *p,
					     const struct wgp_config *cfg, __u32 flags, __u32 slot,
					     __u64 word)
{
	__u32 action = word & WGP_WORD_ACTION_MASK;
	union wgp_address tunnel;

	if (!(flags & WGP_FLOW_HOST) || slot == WGP_SLOT_OUTSIDE)
		return 0;
	if (action == WGP_ACTION_EXEMPT)
		return WGP_FLOW_PASS;
	if ((action != WGP_ACTION_CLEAR && action != WGP_ACTION_DRAINING) ||
	    (cfg->flags & WGP_CONFIG_STRICT))
		return 0;
	/* With the tunnel's address as its own it changes without anybody noticing. */
	if (wgp_tunnel_address(cfg, p->family, &tunnel) && wgp_same_address(&tunnel, &p->source))
		return 0;
	return WGP_FLOW_PASS;
}

static __always_inline int wgp_is_steered(const struct wgp_verdict *verdict)
{
	return verdict->action == WGP_ACTION_TUNNEL && verdict->ifindex &&
	       !(verdict->flags & WGP_FLOW_PASS);
}

/*
 * The reason for which a packet that is not steered is a leak, WGP_REASON_NONE when it
 * is none: it goes to the node's own pods or outside, or nothing was promised.
 */
static __always_inline __u32 wgp_leak(const struct wgp_verdict *verdict,
				      const struct wgp_config *cfg)
{
	if (verdict->slot == WGP_SLOT_OUTSIDE)
		return WGP_REASON_NONE;
	if (verdict->action == WGP_ACTION_EXEMPT || (verdict->flags & WGP_FLOW_EXEMPT))
		return WGP_REASON_CLEAR_EXEMPT;
	if (!(verdict->flags & WGP_FLOW_PROMISED))
		return WGP_REASON_CLEAR_FOREIGN;
	return cfg->flags & WGP_CONFIG_STRICT ? WGP_REASON_DROP_CLEAR : WGP_REASON_CLEAR;
}

/*
 * Makes wgp_work()->fresh the entry as it should be now: its slot, its source, whether
 * netfilter wants it. `before`: the flags it had. Returns the flags.
 */
WGP_FUNCTION int wgp_judge(struct __sk_buff *skb, __u32 before)
{
	const struct wgp_destination *destination;
	const struct wgp_context *context;
	const struct wgp_config *cfg = wgp_config();
	struct wgp_work *w = wgp_work();
	const struct wgp_packet *p;
	struct wgp_flow *flow;
	__u32 flags;
	__u64 word;

	if (!w || !cfg)
		return 0;
	p = &w->packet;
	context = &w->context;
	flow = &w->fresh;
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->config_generation = cfg->generation;
	flow->hook = context->hook;
	/* Most of what leaves a node is none of ours: one look, and nothing to remember. */
	if (!context->is_pod && wgp_slot_of(p->family, &p->destination) == WGP_SLOT_OUTSIDE) {
		flow->flags = WGP_FLOW_PASS;
		return flow->flags;
	}
	wgp_flow_resolve(flow, p);
	destination = wgp_destination(flow->slot);
	word = destination ? wgp_word(destination) : 0;
	if (context->is_pod && (cfg->flags & WGP_CONFIG_SOURCES) &&
	    wgp_is_spoofed(p, context->ifindex)) {
		flow->flags = WGP_FLOW_PASS | WGP_FLOW_SPOOFED;
		return flow->flags;
	}
	flags = wgp_source_flags(p, cfg, context);
	/* What the host has begun in clear goes on so until it begins anew. */
	if ((flags & WGP_FLOW_HOST) && !wgp_starts_connection(p) &&
	    !(cfg->flags & WGP_CONFIG_STRICT))
		flags |= before & WGP_FLOW_PASS;
	flags |= wgp_stays_clear(p, cfg, flags, flow->slot, word);
	if (context->is_pod && (cfg->flags & WGP_CONFIG_DIRECT) &&
	    (cfg->flags & WGP_CONFIG_CONNTRACK) && flow->slot >= WGP_SLOT_FIRST_PEER &&
	    wgp_conntrack_knows(skb, p))
		flags |= WGP_FLOW_STACK;
	flow->flags = flags;
	return flags;
}

/* What the host's mapping is, if the flow has looked it up a moment ago and nothing opens or ends. */
static __always_inline __u32 wgp_known_port(const struct wgp_flow *flow, const struct wgp_packet *p)
{
	if (!flow->nat_port || p->fragment ||
	    (p->tcp_flags & (WGP_TCP_SYN | WGP_TCP_FIN | WGP_TCP_RST)) ||
	    (__u32)(wgp_now() >> 30) - flow->nat_time > WGP_NAT_FRESH)
		return 0;
	return flow->nat_port;
}

/*
 * The long way: judges a flow that has no entry or a stale one, and enters it.
 * Fills wgp_work()->verdict.
 */
WGP_FUNCTION int wgp_decide_anew(struct __sk_buff *skb)
{
	const struct wgp_destination *destination;
	const struct wgp_context *context;
	const struct wgp_config *cfg = wgp_config();
	struct wgp_work *w = wgp_work();
	const struct wgp_packet *p;
	struct wgp_flow *flow, *fresh;
	__u32 before;

	if (!w || !cfg)
		return 0;
	p = &w->packet;
	context = &w->context;
	fresh = &w->fresh;
	flow = wgp_flow_find(p, context->ifindex, 0);
	before = flow ? flow->flags : 0;
	wgp_judge(skb, before);
	destination = wgp_destination(fresh->slot);
	wgp_verdict_fill(&w->verdict, fresh->slot, fresh->flags, destination,
			 destination ? wgp_word(destination) : 0);
	if (fresh->flags & WGP_FLOW_SPOOFED)
		return 0;
	if (!context->is_pod && wgp_is_steered(&w->verdict) && (cfg->flags & WGP_CONFIG_DIRECT) &&
	    !(fresh->flags & WGP_FLOW_HOST))
		wgp_flow_return_by_stack(p, cfg);
	if (flow) {
		flow->flags = fresh->flags | (before & (WGP_FLOW_TUNNELLED | WGP_FLOW_CLEAR));
		flow->slot = fresh->slot;
		flow->generation = fresh->generation;
		flow->config_generation = fresh->config_generation;
		flow->nat_port = 0;
		if (!context->counted)
			wgp_flow_account(flow, p);
		return 0;
	}
	if (fresh->slot == WGP_SLOT_OUTSIDE && !context->is_pod)
		return 0;
	if (wgp_is_steered(&w->verdict))
		fresh->flags |= WGP_FLOW_TUNNELLED;
	fresh->first_ns = wgp_now();
	fresh->last_ns = fresh->first_ns;
	if (!context->counted) {
		fresh->packets = p->packets;
		fresh->bytes = p->bytes;
		fresh->tcp_flags = p->tcp_flags;
	}
	if (!wgp_flow_insert(p, context->ifindex, fresh)) {
		wgp_flow_begins(p, context->ifindex, context->hook, fresh->flags);
		return 0;
	}
	flow = wgp_flow_find(p, context->ifindex, 0);
	if (!flow)
		wgp_count(p, context->hook, WGP_REASON_FLOW_TABLE_FULL);
	else if (!context->counted)
		wgp_flow_account(flow, p); /* another CPU was first */
	return 0;
}

/*
 * Looks up or makes the flow's entry, counts the packet in it unless another
 * hook has, and tells in w->verdict what its destination wants now.
 */
static __always_inline void wgp_decide(struct __sk_buff *skb, struct wgp_work *w,
				       const struct wgp_config *cfg)
{
	const struct wgp_packet *p = &w->packet;
	struct wgp_flow *flow = wgp_flow_find(p, w->context.ifindex, 0);
	const struct wgp_destination *destination;
	struct wgp_verdict *verdict = &w->verdict;
	__u64 word = 0;

	if (flow && !wgp_starts_connection(p)) {
		destination = wgp_destination(flow->slot);
		if (destination)
			word = wgp_word(destination);
		if (wgp_flow_current(flow, cfg, word)) {
			wgp_verdict_fill(verdict, flow->slot, flow->flags, destination, word);
			if (!w->context.counted)
				wgp_flow_account(flow, p);
			if (wgp_is_steered(verdict)) {
				wgp_flow_flag(flow, WGP_FLOW_TUNNELLED);
				if (verdict->flags & WGP_FLOW_HOST)
					verdict->port = wgp_known_port(flow, p);
			}
			return;
		}
	}
	/* None, a stale one, or the tuple is used again: decide anew, keep the counters. */
	wgp_decide_anew(skb);
}

/* Notes in the flow's entry that a packet of it left in clear, or was dropped. */
static __always_inline void wgp_flow_mark(const struct wgp_packet *p, __u32 ifindex, __u32 flag,
					  __u32 reason)
{
	struct wgp_flow *flow = wgp_flow_find(p, ifindex, 0);

	if (!flow)
		return;
	if (flag)
		wgp_flow_flag(flow, flag);
	if (reason)
		flow->reason = reason;
}

/* Into the lane's device: the kernel strips the link header for an L3 device. */
static __always_inline int wgp_tunnel(struct __sk_buff *skb, const struct wgp_packet *p,
				      const struct wgp_config *cfg, __u32 hook,
				      const struct wgp_verdict *verdict)
{
	wgp_clamp_mss(skb, p, cfg, hook);
	/* A tag of the link means nothing to an L3 device. */
	if (skb->vlan_present)
		bpf_skb_vlan_pop(skb);
	skb->mark = WGP_MARK_COUNTED;
	if (verdict->flags & WGP_FLOW_HOST)
		skb->mark = WGP_MARK_COUNTED | WGP_MARK_HOST | verdict->port << WGP_MARK_PORT_SHIFT;
	wgp_count(p, hook, WGP_REASON_TUNNELLED);
	return bpf_redirect(verdict->ifindex, 0);
}

#endif
