/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow table: one entry a direction, with its counters, its destination's slot
 * and what is known of its source.
 *
 * An entry is current while neither its slot's generation nor the
 * configuration's has moved on. What the slot's action says holds at once for
 * every flow, without touching any entry.
 */
#ifndef WGPLANE_LIB_FLOW_H
#define WGPLANE_LIB_FLOW_H

#include "events.h"

/* Ports of a key; none for fragments, which must all find one entry. */
static __always_inline void wgp_flow_ports(const struct wgp_packet *p, int reverse, __be16 *source,
					   __be16 *destination)
{
	if (p->fragment)
		return;
	if (wgp_is_icmp(p)) {
		*source = p->source_port;
		*destination = bpf_htons(p->icmp_type << 8 | p->icmp_code);
	} else {
		*source = reverse ? p->destination_port : p->source_port;
		*destination = reverse ? p->source_port : p->destination_port;
	}
}

static __always_inline void wgp_flow_key4(struct wgp_flow_key4 *key, const struct wgp_packet *p,
					  __u32 ifindex, int reverse)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->source = reverse ? p->destination.v4 : p->source.v4;
	key->destination = reverse ? p->source.v4 : p->destination.v4;
	key->ifindex = ifindex;
	key->protocol = p->protocol;
	wgp_flow_ports(p, reverse, &key->source_port, &key->destination_port);
}

static __always_inline void wgp_flow_key6(struct wgp_flow_key6 *key, const struct wgp_packet *p,
					  __u32 ifindex, int reverse)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->source, reverse ? &p->destination : &p->source, 16);
	__builtin_memcpy(key->destination, reverse ? &p->source : &p->destination, 16);
	key->ifindex = ifindex;
	key->protocol = p->protocol;
	wgp_flow_ports(p, reverse, &key->source_port, &key->destination_port);
}

/*
 * The entry of a packet (reverse: of its answer, not for ICMP) that came in by a
 * device; or NULL.
 */
static __always_inline struct wgp_flow *wgp_flow_find(const struct wgp_packet *p, __u32 ifindex,
						      int reverse)
{
	if (p->family == 4) {
		struct wgp_flow_key4 key;

		wgp_flow_key4(&key, p, ifindex, reverse);
		return bpf_map_lookup_elem(&flows4, &key);
	} else {
		struct wgp_flow_key6 key;

		wgp_flow_key6(&key, p, ifindex, reverse);
		return bpf_map_lookup_elem(&flows6, &key);
	}
}

/* Returns 0, or a negative errno: -E2BIG when the table is full. */
static __always_inline int wgp_flow_insert(const struct wgp_packet *p, __u32 ifindex,
					   const struct wgp_flow *flow)
{
	if (p->family == 4) {
		struct wgp_flow_key4 key;

		wgp_flow_key4(&key, p, ifindex, 0);
		return bpf_map_update_elem(&flows4, &key, flow, BPF_NOEXIST);
	} else {
		struct wgp_flow_key6 key;

		wgp_flow_key6(&key, p, ifindex, 0);
		return bpf_map_update_elem(&flows6, &key, flow, BPF_NOEXIST);
	}
}

static __always_inline void wgp_flow_account(struct wgp_flow *flow, const struct wgp_packet *p)
{
	__u32 jiffies = (__u32)bpf_jiffies64(); /* a load, where the other clock is a call */

	if (constants.uncounted)
		return;
	__atomic_fetch_add(&flow->packets, p->packets, __ATOMIC_RELAXED);
	__atomic_fetch_add(&flow->bytes, p->bytes, __ATOMIC_RELAXED);
	if (flow->jiffies != jiffies) {
		flow->jiffies = jiffies;
		flow->last_ns = wgp_now();
	}
	if (wgp_starts_connection(p))
		flow->tcp_flags = p->tcp_flags;
	else if (p->tcp_flags & ~flow->tcp_flags)
		flow->tcp_flags |= p->tcp_flags;
}

static __always_inline void wgp_flow_flag(struct wgp_flow *flow, __u16 flag)
{
	if ((flow->flags & flag) != flag)
		flow->flags |= flag;
}

static __always_inline int wgp_flow_current(const struct wgp_flow *flow,
					    const struct wgp_config *cfg, __u64 word)
{
	return flow->generation == (__u32)(word >> WGP_WORD_ACTION_BITS) &&
	       flow->config_generation == cfg->generation;
}

/*
 * The slot of the destination and the generation that goes with it. The route
 * is looked up again after the generation was read: a route that moved between
 * the two leaves an entry that is stale at once, never one that is stale for good.
 */
static __always_inline void wgp_flow_resolve(struct wgp_flow *flow, const struct wgp_packet *p)
{
	__u32 slot = wgp_slot_of(p->family, &p->destination);
	const struct wgp_destination *destination = wgp_destination(slot);
	__u32 generation = 0;

	if (destination)
		generation = (__u32)(wgp_word(destination) >> WGP_WORD_ACTION_BITS);
	flow->slot = wgp_slot_of(p->family, &p->destination);
	flow->generation = flow->slot == slot ? generation : generation - 1;
}

/* Makes the entry of a flow that is only counted here, with its first packet. */
static __always_inline void wgp_flow_record(const struct wgp_packet *p,
					    const struct wgp_config *cfg, __u32 ifindex, __u8 hook,
					    __u16 flags)
{
	struct wgp_flow fresh = {};
	struct wgp_flow *flow;

	fresh.config_generation = cfg->generation;
	wgp_flow_resolve(&fresh, p);
	fresh.flags = flags;
	fresh.hook = hook;
	fresh.packets = p->packets;
	fresh.bytes = p->bytes;
	fresh.tcp_flags = p->tcp_flags;
	fresh.first_ns = wgp_now();
	fresh.last_ns = fresh.first_ns;
	if (!wgp_flow_insert(p, ifindex, &fresh)) {
		wgp_flow_begins(p, ifindex, hook, flags);
		return;
	}
	flow = wgp_flow_find(p, ifindex, 0);
	if (flow)
		wgp_flow_account(flow, p); /* another CPU was first */
	else
		wgp_count(p, hook, WGP_REASON_FLOW_TABLE_FULL);
}

/*
 * The way back of what the stack has steered goes through the stack too: there
 * netfilter undoes what it has done. Not for ICMP, whose answers have keys of their own.
 */
static __always_inline void wgp_flow_return_by_stack(const struct wgp_packet *p,
						     const struct wgp_config *cfg)
{
	__u32 ifindex = p->family == 4 ? cfg->ifindex4 : cfg->ifindex6;
	struct wgp_flow *flow;
	struct wgp_flow fresh = {};

	if (wgp_is_icmp(p))
		return;
	flow = wgp_flow_find(p, ifindex, 1);
	if (flow) {
		wgp_flow_flag(flow, WGP_FLOW_STACK);
		return;
	}
	fresh.slot = WGP_SLOT_LOCAL;
	fresh.flags = WGP_FLOW_STACK | WGP_FLOW_TUNNELLED;
	fresh.hook = WGP_HOOK_FROM_WIREGUARD;
	fresh.first_ns = wgp_now();
	fresh.last_ns = fresh.first_ns;
	if (p->family == 4) {
		struct wgp_flow_key4 key;

		wgp_flow_key4(&key, p, ifindex, 1);
		bpf_map_update_elem(&flows4, &key, &fresh, BPF_NOEXIST);
	} else {
		struct wgp_flow_key6 key;

		wgp_flow_key6(&key, p, ifindex, 1);
		bpf_map_update_elem(&flows6, &key, &fresh, BPF_NOEXIST);
	}
}

/* Fills the verdict from the slot as it is now. */
static __always_inline void wgp_verdict_fill(struct wgp_verdict *verdict, __u32 slot, __u32 flags,
					     const struct wgp_destination *destination, __u64 word)
{
	verdict->slot = slot;
	verdict->flags = flags;
	verdict->action = word & WGP_WORD_ACTION_MASK;
	verdict->port = 0;
	verdict->ifindex = destination ? destination->lanes[0].ifindex : 0;
}

#endif
