/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The decision of from_pod and to_uplink: a flow's entry, found or made, and what its
 * destination wants now.
 */
#ifndef WGPLANE_LIB_STEER_H
#define WGPLANE_LIB_STEER_H

#include "flow.h"
#include "masquerade.h"

/* A hook's circumstances; see wgp_decide. */
struct wgp_context {
	__u32 hook; /* enum wgp_hook */
	__u32 ifindex; /* device the packet came in by, 0: from the host */
	__u32 reply_ifindex; /* uplink by which the host's answers leave, else 0 */
	__u32 counted; /* another hook has counted the packet */
	__u32 outside; /* flows to outside every pool are recorded */
};

/*
 * Does the host answer, or go on with, something that began outside the
 * tunnel? It must go on there: masqueraded, it would reach its peer from an
 * address that the peer does not know.
 */
static __always_inline int wgp_host_continues(const struct wgp_packet *p,
					      const struct wgp_context *context)
{
	if (p->protocol == IPPROTO_TCP)
		return !wgp_starts_connection(p) && !wgp_is_masqueraded(p);
	/* Errors quote what came through the tunnel: they may go nowhere else. */
	if (wgp_is_icmp(p))
		return p->has_port && !wgp_is_echo_request(p);
	return context->reply_ifindex && wgp_flow_find(p, context->reply_ifindex, 1);
}

/*
 * Who may be steered: the far peer accepts local pods' own addresses, and the
 * node's once they are masqueraded. Returns enum wgp_flow_flag bits.
 */
static __always_inline __u32 wgp_source_flags(const struct wgp_packet *p,
					      const struct wgp_context *context)
{
	const struct wgp_local *local = wgp_local(p->family, &p->source);
	__u32 ifindex = context->ifindex;

	/* A pod that nobody has told us of, or no more: its address is of our blocks. */
	if (!local)
		return ifindex && wgp_slot_of(p->family, &p->source) == WGP_SLOT_LOCAL
			       ? 0
			       : WGP_FLOW_PASS;
	if (local->kind == WGP_LOCAL_POD)
		return local->ifindex && ifindex && local->ifindex != ifindex ? WGP_FLOW_PASS : 0;
	if (ifindex)
		return WGP_FLOW_PASS;
	/* What speaks from the tunnel's address was spoken to through the tunnel. */
	if (local->kind == WGP_LOCAL_TUNNEL)
		return WGP_FLOW_HOST;
	return WGP_FLOW_HOST | (wgp_host_continues(p, context) ? WGP_FLOW_PASS : 0);
}

/*
 * A connection that the host begins while its peer is not ready goes in clear and
 * cannot change to the tunnel: there it would have another source address.
 */
static __always_inline __u32 wgp_stays_clear(__u32 flags, __u32 slot, __u64 word)
{
	__u32 action = word & WGP_WORD_ACTION_MASK;

	if (!(flags & WGP_FLOW_HOST) || slot == WGP_SLOT_OUTSIDE)
		return 0;
	return action == WGP_ACTION_CLEAR || action == WGP_ACTION_DRAINING ? WGP_FLOW_PASS : 0;
}

static __always_inline int wgp_is_steered(const struct wgp_verdict *verdict)
{
	return verdict->action == WGP_ACTION_TUNNEL && !(verdict->flags & WGP_FLOW_PASS);
}

/*
 * Looks up or makes the flow's entry, counts the packet in it unless another
 * hook has, and tells what its destination wants now.
 */
static __always_inline void wgp_decide(const struct wgp_packet *p, const struct wgp_config *cfg,
				       const struct wgp_context *context,
				       struct wgp_verdict *verdict)
{
	struct wgp_flow *flow = wgp_flow_find(p, context->ifindex, 0);
	const struct wgp_destination *destination;
	struct wgp_flow fresh = {};
	__u64 word = 0;

	if (flow) {
		__u8 seen = flow->flags & (WGP_FLOW_TUNNELLED | WGP_FLOW_CLEAR);

		destination = wgp_destination(flow->slot);
		if (destination)
			word = wgp_word(destination);
		if (wgp_flow_current(flow, cfg, word) && !wgp_starts_connection(p))
			goto known;
		/* Stale, or the tuple is used again: decide anew, keep the counters. */
		fresh.config_generation = cfg->generation;
		wgp_flow_resolve(&fresh, p);
		fresh.flags = wgp_source_flags(p, context);
		/* What the host has begun in clear goes on so until it begins anew. */
		if ((fresh.flags & WGP_FLOW_HOST) && !wgp_starts_connection(p))
			fresh.flags |= flow->flags & WGP_FLOW_PASS;
		destination = wgp_destination(fresh.slot);
		word = destination ? wgp_word(destination) : 0;
		fresh.flags |= wgp_stays_clear(fresh.flags, fresh.slot, word);
		flow->flags = seen | fresh.flags;
		flow->slot = fresh.slot;
		flow->generation = fresh.generation;
		flow->config_generation = fresh.config_generation;
	known:
		wgp_verdict_fill(verdict, flow->slot, flow->flags, destination, word);
		if (!context->counted)
			wgp_flow_account(flow, p);
		if (wgp_is_steered(verdict))
			wgp_flow_flag(flow, WGP_FLOW_TUNNELLED);
		return;
	}

	fresh.config_generation = cfg->generation;
	wgp_flow_resolve(&fresh, p);
	destination = wgp_destination(fresh.slot);
	word = destination ? wgp_word(destination) : 0;
	if (fresh.slot == WGP_SLOT_OUTSIDE && !context->outside) {
		wgp_verdict_fill(verdict, fresh.slot, WGP_FLOW_PASS, destination, word);
		return;
	}
	fresh.flags = wgp_source_flags(p, context);
	fresh.flags |= wgp_stays_clear(fresh.flags, fresh.slot, word);
	wgp_verdict_fill(verdict, fresh.slot, fresh.flags, destination, word);
	if (wgp_is_steered(verdict))
		fresh.flags |= WGP_FLOW_TUNNELLED;
	fresh.hook = context->hook;
	fresh.first_ns = wgp_now();
	fresh.last_ns = fresh.first_ns;
	if (!context->counted) {
		fresh.packets = p->packets;
		fresh.bytes = p->bytes;
		fresh.tcp_flags = p->tcp_flags;
	}
	if (wgp_flow_insert(p, context->ifindex, &fresh)) {
		flow = wgp_flow_find(p, context->ifindex, 0);
		if (!flow)
			wgp_count(p, context->hook, WGP_REASON_FLOW_TABLE_FULL);
		else if (!context->counted)
			wgp_flow_account(flow, p); /* another CPU was first */
	}
}

/* Into the lane's device: the kernel strips the link header for an L3 device. */
static __always_inline int wgp_tunnel(struct __sk_buff *skb, const struct wgp_packet *p, __u32 hook,
				      const struct wgp_verdict *verdict)
{
	/* A tag of the link means nothing to an L3 device. */
	if (skb->vlan_present)
		bpf_skb_vlan_pop(skb);
	skb->mark = WGP_MARK_COUNTED | (verdict->flags & WGP_FLOW_HOST ? WGP_MARK_HOST : 0);
	wgp_count(p, hook, WGP_REASON_TUNNELLED);
	return bpf_redirect(verdict->ifindex, 0);
}

#endif
