// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ingress of an uplink: who may speak WireGuard to us, and what arrives in clear. */
#include "lib/flow.h"

/* Records a pod's flow that came in clear, so that the host's answers go back so. */
static __always_inline void record(const struct wgp_packet *p, const struct wgp_config *cfg,
				   __u32 ifindex)
{
	struct wgp_flow *flow = wgp_flow_find(p, ifindex, 0);

	if (flow) {
		wgp_flow_account(flow, p);
		return;
	}
	if (wgp_slot_of(p->family, &p->source) < WGP_SLOT_FIRST_PEER)
		return;
	/* The answer to what the host began is no flow of its own here. */
	if (wgp_flow_find(p, 0, 1))
		return;
	wgp_flow_record(p, cfg, ifindex, WGP_HOOK_FROM_UPLINK, WGP_FLOW_CLEAR);
}

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	const struct wgp_local *local;
	struct wgp_packet packet;
	int parsed = wgp_parse(skb, &packet);

	if (parsed)
		return wgp_pass_unparsed(skb, &packet, WGP_HOOK_FROM_UPLINK, parsed);
	if (!cfg || !wgp_enabled(cfg, &packet))
		return WGP_PASS;
	local = wgp_local(packet.family, &packet.destination);
	if (!local)
		return WGP_PASS;
	if (packet.protocol == IPPROTO_UDP && local->kind != WGP_LOCAL_POD &&
	    packet.fragment != WGP_FRAGMENT_LATER &&
	    packet.destination_port == bpf_htons(packet.family == 4 ? cfg->port4 : cfg->port6)) {
		if (wgp_endpoint(packet.family, &packet.source))
			return WGP_PASS;
		return wgp_drop(&packet, WGP_HOOK_FROM_UPLINK, WGP_REASON_DROP_UNKNOWN_ENDPOINT);
	}
	record(&packet, cfg, skb->ifindex);
	return WGP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
