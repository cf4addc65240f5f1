// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Egress of an uplink: the node's own traffic, and pods' that took the stack. */
#include "lib/steer.h"

/* WireGuard's own outer packet: a mark alone proves nothing. */
static __always_inline int is_outer(const struct __sk_buff *skb, const struct wgp_packet *p,
				    const struct wgp_config *cfg)
{
	if ((skb->mark & cfg->mark) != cfg->mark || p->protocol != IPPROTO_UDP)
		return 0;
	if (p->fragment != WGP_FRAGMENT_LATER &&
	    p->source_port != bpf_htons(p->family == 4 ? cfg->port4 : cfg->port6))
		return 0;
	return wgp_endpoint(p->family, &p->destination) != NULL;
}

SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	struct wgp_context context = {
		.hook = WGP_HOOK_TO_UPLINK,
		.ifindex = skb->ingress_ifindex,
		.reply_ifindex = skb->ifindex,
		.counted = !!(skb->mark & WGP_MARK_COUNTED),
	};
	const struct wgp_config *cfg = wgp_config();
	struct wgp_verdict verdict;
	struct wgp_packet packet;
	int parsed = wgp_parse(skb, &packet);

	if (context.counted)
		skb->mark &= ~WGP_MARK_COUNTED;
	if (parsed)
		return wgp_pass_unparsed(skb, &packet, WGP_HOOK_TO_UPLINK, parsed);
	if (!cfg || !wgp_enabled(cfg, &packet) || is_outer(skb, &packet, cfg))
		return WGP_PASS;
	/* What was decrypted here goes out again to nobody's pod. */
	if (context.ifindex &&
	    (context.ifindex == cfg->ifindex4 || context.ifindex == cfg->ifindex6) &&
	    wgp_slot_of(packet.family, &packet.destination) != WGP_SLOT_OUTSIDE)
		return wgp_drop(&packet, WGP_HOOK_TO_UPLINK, WGP_REASON_DROP_NOT_HERE);
	wgp_decide(&packet, cfg, &context, &verdict);
	if (verdict.action == WGP_ACTION_DROP)
		return wgp_drop(&packet, WGP_HOOK_TO_UPLINK, WGP_REASON_DROP_NO_TUNNEL);
	if (wgp_is_steered(&verdict))
		return wgp_tunnel(skb, &packet, WGP_HOOK_TO_UPLINK, &verdict);
	if (verdict.slot >= WGP_SLOT_POOL) {
		struct wgp_flow *flow = wgp_flow_find(&packet, context.ifindex, 0);

		wgp_count(&packet, WGP_HOOK_TO_UPLINK, WGP_REASON_CLEAR);
		if (flow)
			wgp_flow_flag(flow, WGP_FLOW_CLEAR);
	}
	return WGP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
