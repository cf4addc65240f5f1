// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ingress of a WireGuard device: decrypted packets, on their way to a pod or the host. */
#include "lib/flow.h"
#include "lib/masquerade.h"

/* Puts an Ethernet header on and hands the packet to the pod's device. */
static __always_inline int deliver(struct __sk_buff *skb, const struct wgp_packet *p, __u32 ifindex)
{
	__be16 protocol = bpf_htons(p->family == 4 ? ETH_P_IP : ETH_P_IPV6);
	struct ethhdr header = {.h_proto = protocol};

	if (bpf_skb_change_head(skb, sizeof(header), 0) ||
	    bpf_skb_store_bytes(skb, 0, &header, sizeof(header), 0))
		return wgp_drop(p, WGP_HOOK_FROM_WIREGUARD, WGP_REASON_DROP_REWRITE_FAILED);
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

SEC("tc")
int from_wireguard(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	const struct wgp_local *local;
	struct wgp_flow *flow;
	struct wgp_packet packet;
	int parsed = wgp_parse(skb, &packet);

	if (parsed)
		return wgp_pass_unparsed(skb, &packet, WGP_HOOK_FROM_WIREGUARD, parsed);
	if (!cfg)
		return WGP_PASS;
	wgp_count(&packet, WGP_HOOK_FROM_WIREGUARD, WGP_REASON_DECRYPTED);
	local = wgp_local(packet.family, &packet.destination);
	if (local && local->kind == WGP_LOCAL_TUNNEL) {
		int result = wgp_masquerade_in(skb, &packet);

		if (result < 0)
			return wgp_drop(&packet, WGP_HOOK_FROM_WIREGUARD, -result);
		if (result)
			wgp_count(&packet, WGP_HOOK_FROM_WIREGUARD, WGP_REASON_UNMASQUERADED);
	}
	/* Counted under the host's own address, as the other direction is. */
	flow = wgp_flow_find(&packet, skb->ifindex, 0);
	if (flow)
		wgp_flow_account(flow, &packet);
	else
		wgp_flow_record(&packet, cfg, skb->ifindex, WGP_HOOK_FROM_WIREGUARD,
				WGP_FLOW_TUNNELLED);
	if (!local)
		return WGP_PASS;
	if (local->kind == WGP_LOCAL_POD && local->ifindex && (cfg->flags & WGP_CONFIG_DIRECT))
		return deliver(skb, &packet, local->ifindex);
	return WGP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
