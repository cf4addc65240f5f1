/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets as they leave a hook, with its verdict, for who wants to see them. */
#ifndef WGPLANE_LIB_TRACE_H
#define WGPLANE_LIB_TRACE_H

#include "events.h"

#define WGP_REDIRECTED 7 /* TC_ACT_REDIRECT */

static __always_inline int wgp_matches(const union wgp_address *address, const __be32 *wanted,
				       const __be32 *mask, __u8 family)
{
	__be32 differs = (address->words[0] ^ wanted[0]) & mask[0];

	if (family == 6)
		differs |= ((address->words[1] ^ wanted[1]) & mask[1]) |
			   ((address->words[2] ^ wanted[2]) & mask[2]) |
			   ((address->words[3] ^ wanted[3]) & mask[3]);
	return !differs;
}

static __always_inline int wgp_is_port(__be16 wanted, __be16 port)
{
	return !wanted || wanted == port;
}

static __always_inline int wgp_is_traced(const struct wgp_packet *p,
					 const struct wgp_trace_filter *filter)
{
	if ((filter->family && filter->family != p->family) ||
	    (filter->protocol && filter->protocol != p->protocol))
		return 0;
	if (wgp_matches(&p->source, filter->address, filter->mask, p->family) &&
	    wgp_matches(&p->destination, filter->other, filter->other_mask, p->family) &&
	    wgp_is_port(filter->port, p->source_port) &&
	    wgp_is_port(filter->other_port, p->destination_port))
		return 1;
	return wgp_matches(&p->destination, filter->address, filter->mask, p->family) &&
	       wgp_matches(&p->source, filter->other, filter->other_mask, p->family) &&
	       wgp_is_port(filter->port, p->destination_port) &&
	       wgp_is_port(filter->other_port, p->source_port);
}

/* The packet was parsed by the hook, before it changed anything: what is told is how it came. */
WGP_FUNCTION int wgp_trace(struct __sk_buff *skb, __u32 hook, int verdict)
{
	const struct wgp_event_control *control = wgp_listeners();
	struct wgp_work *w = wgp_work();
	__u32 length = skb->len;
	__u64 captured = length;
	struct wgp_trace *trace;
	const struct wgp_packet *p;

	if (!w || !control)
		return 0;
	p = &w->packet;
	if (!p->family || wgp_now() >= control->traces_until_ns ||
	    !wgp_is_traced(p, &control->filter))
		return 0;
	trace = bpf_ringbuf_reserve(&events, sizeof(*trace), 0);
	if (!trace) {
		wgp_count(p, hook, WGP_REASON_EVENT_LOST);
		return 0;
	}
	__builtin_memset(trace, 0, sizeof(*trace));
	trace->event.time_ns = bpf_ktime_get_ns();
	__builtin_memcpy(trace->event.source, p->source.bytes, 16);
	__builtin_memcpy(trace->event.destination, p->destination.bytes, 16);
	trace->event.source_port = p->source_port;
	trace->event.destination_port =
		wgp_is_icmp(p) ? bpf_htons(p->icmp_type << 8 | p->icmp_code) : p->destination_port;
	trace->event.bytes = p->bytes;
	trace->event.ifindex = skb->ifindex;
	trace->event.kind = WGP_EVENT_TRACE;
	trace->event.hook = hook;
	trace->event.reason = p->reason;
	trace->event.family = p->family;
	trace->event.protocol = p->protocol;
	trace->event.flags = w->verdict.flags;
	trace->length = length;
	trace->slot = w->verdict.slot;
	trace->segments = p->packets;
	trace->verdict = verdict == WGP_SHOT	     ? WGP_TRACE_DROP
			 : verdict == WGP_REDIRECTED ? WGP_TRACE_REDIRECT
						     : WGP_TRACE_PASS;
	/* On its way to a pod it has got a header already. */
	trace->is_ethernet = constants.link_header_length ||
			     (hook == WGP_HOOK_FROM_WIREGUARD && verdict == WGP_REDIRECTED);
	/* One less, in bits that even old verifiers take for 0 to 255: never none. */
	captured = captured < WGP_TRACE_BYTES ? captured - 1 : WGP_TRACE_BYTES - 1;
	asm volatile("" : "+r"(captured));
	captured = (captured & (WGP_TRACE_BYTES - 1)) + 1;
	if (!bpf_skb_load_bytes(skb, 0, trace->data, captured))
		trace->captured = captured;
	bpf_ringbuf_submit(trace, 0);
	return 0;
}

static __always_inline int wgp_is_tracing(void)
{
	const struct wgp_event_control *control = wgp_listeners();

	/* The clock is asked only while somebody listens, or one that was killed has left its time. */
	return control && control->traces_until_ns && wgp_now() < control->traces_until_ns;
}

/* At a hook's end: tells who listens, and returns the verdict. */
static __always_inline int wgp_traced(struct __sk_buff *skb, __u32 hook, int verdict)
{
	if (wgp_is_tracing())
		wgp_trace(skb, hook, verdict);
	return verdict;
}

#endif
