/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Drops and new flows for who listens; while nobody does, one look at a time. */
#ifndef WGPLANE_LIB_EVENTS_H
#define WGPLANE_LIB_EVENTS_H

#include "lookup.h"

static __always_inline const struct wgp_event_control *wgp_listeners(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&event_control, &zero);
}

static __always_inline void wgp_event(const struct wgp_packet *p, __u32 ifindex, __u32 hook,
				      __u8 kind, __u8 reason, __u8 flags)
{
	struct wgp_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		wgp_count(p, hook, WGP_REASON_EVENT_LOST);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time_ns = wgp_now();
	__builtin_memcpy(event->source, p->source.bytes, 16);
	__builtin_memcpy(event->destination, p->destination.bytes, 16);
	event->source_port = p->source_port;
	event->destination_port =
		wgp_is_icmp(p) ? bpf_htons(p->icmp_type << 8 | p->icmp_code) : p->destination_port;
	event->bytes = p->bytes;
	event->ifindex = ifindex;
	event->kind = kind;
	event->hook = hook;
	event->reason = reason;
	event->family = p->family;
	event->protocol = p->protocol;
	event->flags = flags;
	bpf_ringbuf_submit(event, 0);
}

/* Counts the reason, tells who listens, and returns the verdict that goes with it. */
static __always_inline int wgp_drop(const struct __sk_buff *skb, const struct wgp_packet *p,
				    __u32 hook, __u32 reason)
{
	const struct wgp_event_control *control = wgp_listeners();

	wgp_count(p, hook, reason);
	if (control && control->drops_until_ns && wgp_now() < control->drops_until_ns &&
	    (control->sample < 2 || bpf_get_prandom_u32() % control->sample == 0))
		wgp_event(p, skb->ingress_ifindex, hook, WGP_EVENT_DROP, reason, 0);
	return WGP_SHOT;
}

/* A frame that the kernel would unwrap behind our back: nothing was parsed of it. */
static __always_inline int wgp_drop_wrapped(const struct __sk_buff *skb, struct wgp_packet *p,
					    __u32 hook)
{
	p->packets = 1;
	p->bytes = skb->len;
	return wgp_drop(skb, p, hook, WGP_REASON_DROP_UNPARSABLE);
}

static __always_inline void wgp_flow_begins(const struct wgp_packet *p, __u32 ifindex, __u32 hook,
					    __u8 flags)
{
	const struct wgp_event_control *control = wgp_listeners();

	if (control && control->flows_until_ns && wgp_now() < control->flows_until_ns)
		wgp_event(p, ifindex, hook, WGP_EVENT_FLOW, 0, flags);
}

/*
 * A packet that is not IP passes. One that cannot be parsed is counted and left to the
 * stack, but in strict mode goes no further: nobody can say whether it is promised.
 */
static __always_inline int wgp_unparsed(struct __sk_buff *skb, struct wgp_work *w,
					const struct wgp_config *cfg, __u32 hook, int parsed)
{
	struct wgp_packet *packet = &w->packet;

	if (parsed != WGP_MALFORMED)
		return WGP_PASS;
	packet->packets = 1;
	packet->bytes = skb->len;
	if (cfg && (cfg->flags & WGP_CONFIG_STRICT) && wgp_enabled(cfg, packet))
		return wgp_drop(skb, packet, hook, WGP_REASON_DROP_UNPARSABLE);
	wgp_count(packet, hook, WGP_REASON_UNPARSABLE);
	return WGP_PASS;
}

#endif
