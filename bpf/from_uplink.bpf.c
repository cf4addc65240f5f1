// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ingress of an uplink: who may speak WireGuard to us, and what arrives in clear. */
#include "lib/flow.h"
#include "lib/guard.h"

/* Records a pod's flow that came in clear, so that the host's answers go back so. */
static __always_inline void record(const struct wgp_packet *p, const struct wgp_config *cfg,
				   __u32 ifindex, __u32 source)
{
	struct wgp_flow *flow = wgp_flow_find(p, ifindex, 0);

	if (flow) {
		wgp_flow_account(flow, p);
		return;
	}
	if (source < WGP_SLOT_FIRST_PEER)
		return;
	/* The answer to what the host began is no flow of its own here. */
	if (wgp_flow_find(p, 0, 1))
		return;
	wgp_flow_record(p, cfg, ifindex, WGP_HOOK_FROM_UPLINK, WGP_FLOW_CLEAR);
}

/*
 * Was the packet to be encrypted? From a pod of another node to a pod; under host
 * encryption from any node's address to whatever is here.
 */
static __always_inline int was_promised(const struct wgp_packet *p, const struct wgp_config *cfg,
					const struct wgp_local *local, __u32 source)
{
	if (source == WGP_SLOT_OUTSIDE || wgp_is_exempt_slot(source))
		return 0;
	/* To the node's own address, which the device may have too: only where hosts are encrypted. */
	if (local && local->kind != WGP_LOCAL_POD && !(cfg->flags & WGP_CONFIG_HOSTS) &&
	    wgp_slot_of(p->family, &p->destination) == WGP_SLOT_OUTSIDE)
		return 0;
	if (!local && wgp_slot_of(p->family, &p->destination) == WGP_SLOT_OUTSIDE)
		return 0;
	return !(cfg->flags & WGP_CONFIG_HOSTS) || !wgp_endpoint(p->family, &p->source) ||
	       !wgp_is_exempt_port(p);
}

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	const struct wgp_local *local;
	__u32 source, strict;
	struct wgp_work *w = wgp_work();
	struct wgp_packet *p;
	int parsed;

	if (!w)
		return WGP_PASS;
	p = &w->packet;
	parsed = wgp_parse(skb);
	/* An answer of to_uplink's: only this node can have set the mark. */
	if (skb->mark & WGP_MARK_COUNTED) {
		skb->mark &= ~WGP_MARK_COUNTED;
		return WGP_PASS;
	}
	if (cfg && (cfg->flags & WGP_CONFIG_STRICT) && wgp_is_wrapped(skb))
		return wgp_drop_wrapped(skb, p, WGP_HOOK_FROM_UPLINK);
	if (parsed)
		return wgp_unparsed(skb, w, cfg, WGP_HOOK_FROM_UPLINK, parsed);
	if (!cfg || !wgp_enabled(cfg, p))
		return WGP_PASS;
	strict = cfg->flags & WGP_CONFIG_STRICT;
	local = wgp_local(p->family, &p->destination);
	if (local && p->protocol == IPPROTO_UDP && local->kind != WGP_LOCAL_POD) {
		/* Later fragments of WireGuard's packets: by their endpoint alone. */
		if (p->fragment == WGP_FRAGMENT_LATER && wgp_endpoint(p->family, &p->source))
			return WGP_PASS;
		if (p->fragment != WGP_FRAGMENT_LATER &&
		    p->destination_port == bpf_htons(p->family == 4 ? cfg->port4 : cfg->port6)) {
			if (wgp_endpoint(p->family, &p->source))
				return WGP_PASS;
			return wgp_drop(skb, p, WGP_HOOK_FROM_UPLINK,
					WGP_REASON_DROP_UNKNOWN_ENDPOINT);
		}
	}
	source = wgp_slot_of(p->family, &p->source);
	if (was_promised(p, cfg, local, source)) {
		if (strict)
			return wgp_drop(skb, p, WGP_HOOK_FROM_UPLINK,
					WGP_REASON_DROP_CLEAR_ARRIVED);
		wgp_count(p, WGP_HOOK_FROM_UPLINK, WGP_REASON_CLEAR_ARRIVED);
	} else if (source == WGP_SLOT_OUTSIDE && wgp_carries_pods(skb, p, cfg)) {
		if (strict)
			return wgp_drop(skb, p, WGP_HOOK_FROM_UPLINK, WGP_REASON_DROP_ENCAPSULATED);
		wgp_count(p, WGP_HOOK_FROM_UPLINK, WGP_REASON_CLEAR_ARRIVED);
	}
	if (local)
		record(p, cfg, skb->ifindex, source);
	return WGP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
