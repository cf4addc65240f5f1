// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ingress of a local pod's host-side device: everything the pod sends. */
#include "lib/steer.h"

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct wgp_context context = {
		.hook = WGP_HOOK_FROM_POD,
		.ifindex = skb->ifindex,
		.outside = 1,
	};
	const struct wgp_config *cfg = wgp_config();
	struct wgp_verdict verdict;
	struct wgp_packet packet;
	int parsed = wgp_parse(skb, &packet);

	if (parsed)
		return wgp_pass_unparsed(skb, &packet, WGP_HOOK_FROM_POD, parsed);
	if (!cfg || !wgp_enabled(cfg, &packet))
		return WGP_PASS;
	wgp_decide(&packet, cfg, &context, &verdict);
	if (verdict.action == WGP_ACTION_DROP && !(verdict.flags & WGP_FLOW_PASS))
		return wgp_drop(&packet, WGP_HOOK_FROM_POD, WGP_REASON_DROP_NO_TUNNEL);
	if (wgp_is_steered(&verdict) && (cfg->flags & WGP_CONFIG_DIRECT))
		return wgp_tunnel(skb, &packet, WGP_HOOK_FROM_POD, &verdict);
	skb->mark = (skb->mark & ~WGP_MARK_HOST) | WGP_MARK_COUNTED;
	return WGP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
