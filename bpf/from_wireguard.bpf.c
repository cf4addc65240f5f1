// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ingress of a WireGuard device: decrypted packets, on their way to a pod or the host. */
#include "lib/conntrack.h"
#include "lib/flow.h"
#include "lib/masquerade.h"
#include "lib/trace.h"
#include "lib/tunnel.h"

/* Does the packet, or each segment of one, fit into the pod's device? */
static __always_inline int fits(const struct __sk_buff *skb, const struct wgp_packet *p, __u32 mtu)
{
	__u32 size = skb->len - p->network_offset;

	if (skb->gso_size)
		size = p->payload_offset - p->network_offset + skb->gso_size;
	return !mtu || size <= mtu || skb->gso_size == WGP_GSO_BY_FRAGS;
}

/*
 * Puts an Ethernet header on and hands the packet, a hop older, to the pod: at the far end of its device's pair
 * where that may be, which saves the packet the way through the device and a queue; else to its device.
 */
static __always_inline int deliver(struct __sk_buff *skb, const struct wgp_packet *p,
				   const struct wgp_local *local)
{
	__be16 protocol = bpf_htons(p->family == 4 ? ETH_P_IP : ETH_P_IPV6);
	struct ethhdr header = {.h_proto = protocol};
	__u32 is_far = local->flags & WGP_LOCAL_FAR_END;
	__u32 ifindex = local->ifindex;

	if (is_far)
		__builtin_memcpy(&header, local->link, sizeof(local->link));
	if (wgp_hop(skb, p) || bpf_skb_change_head(skb, sizeof(header), 0) ||
	    bpf_skb_store_bytes(skb, 0, &header, sizeof(header), 0))
		return wgp_drop(skb, p, WGP_HOOK_FROM_WIREGUARD, WGP_REASON_DROP_REWRITE_FAILED);
	if (!is_far)
		return bpf_redirect_neigh(ifindex, NULL, 0, 0);
	/* As from a device: marks are this side's. */
	skb->mark = 0;
	return bpf_redirect_peer(ifindex, 0);
}

/* The flow's entry, made where there is none. Returns enum wgp_flow_flag bits. */
static __always_inline __u32 account(struct __sk_buff *skb, const struct wgp_packet *p,
				     const struct wgp_config *cfg, const struct wgp_local *local)
{
	struct wgp_flow *flow = wgp_flow_find(p, skb->ifindex, 0);
	__u32 flags = WGP_FLOW_TUNNELLED;
	int is_asked = local && local->kind == WGP_LOCAL_POD && (cfg->flags & WGP_CONFIG_DIRECT) &&
		       (cfg->flags & WGP_CONFIG_CONNTRACK);

	if (flow) {
		wgp_flow_account(flow, p);
		if (flow->config_generation == cfg->generation)
			return flow->flags;
		/* What took the stack before goes on so; what conntrack has come to know joins it. */
		if (is_asked && wgp_conntrack_knows(skb, p))
			wgp_flow_flag(flow, WGP_FLOW_STACK);
		flow->config_generation = cfg->generation;
		return flow->flags;
	}
	if (is_asked && wgp_conntrack_knows(skb, p))
		flags |= WGP_FLOW_STACK;
	wgp_flow_record(p, cfg, skb->ifindex, WGP_HOOK_FROM_WIREGUARD, flags);
	return flags;
}

/* All that WireGuard has counted, also what nobody can read. */
static __always_inline void count(const struct __sk_buff *skb, const struct wgp_packet *p,
				  const struct wgp_config *cfg, int is_parsed)
{
	__u32 index = skb->protocol == bpf_htons(ETH_P_IPV6) ? WGP_TUNNEL_IN6 : WGP_TUNNEL_IN4;

	wgp_tunnel_count(skb, cfg, index, skb->len,
			 is_parsed ? p->payload_offset - p->network_offset : 0,
			 is_parsed && p->protocol == IPPROTO_TCP, 0);
}

static __always_inline int decide(struct __sk_buff *skb, struct wgp_work *w,
				  const struct wgp_config *cfg)
{
	const struct wgp_local *local;
	struct wgp_packet *p = &w->packet;
	__u32 flags;
	int parsed;

	parsed = wgp_parse(skb);
	if (cfg)
		count(skb, p, cfg, !parsed);
	if (parsed)
		return wgp_unparsed(skb, w, NULL, WGP_HOOK_FROM_WIREGUARD, parsed);
	if (!cfg)
		return WGP_PASS;
	wgp_count(p, WGP_HOOK_FROM_WIREGUARD, WGP_REASON_DECRYPTED);
	local = wgp_local(p->family, &p->destination);
	if (local && local->kind == WGP_LOCAL_TUNNEL) {
		int result = wgp_is_icmp_error(p) ? wgp_error_in(skb) : wgp_masquerade_in(skb);

		if (result < 0)
			return wgp_drop(skb, p, WGP_HOOK_FROM_WIREGUARD, -result);
		if (result)
			wgp_count(p, WGP_HOOK_FROM_WIREGUARD, WGP_REASON_UNMASQUERADED);
	}
	wgp_clamp_mss(skb, p, cfg, WGP_HOOK_FROM_WIREGUARD);
	/* Counted under the host's own address, as the other direction is. */
	flags = account(skb, p, cfg, local);
	/* What netfilter knows, fragments, and what must be answered with an error: the stack's. */
	if (!local || local->kind != WGP_LOCAL_POD || !local->ifindex ||
	    !(cfg->flags & WGP_CONFIG_DIRECT) || (flags & WGP_FLOW_STACK) || p->fragment ||
	    p->hop_limit <= 1 || wgp_is_icmp_error(p) || !fits(skb, p, local->mtu))
		return WGP_PASS;
	return deliver(skb, p, local);
}

SEC("tc")
int from_wireguard(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	struct wgp_work *w = wgp_work();

	if (!w || wgp_is_inert(cfg))
		return WGP_PASS;
	return wgp_traced(skb, WGP_HOOK_FROM_WIREGUARD, decide(skb, w, cfg));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
