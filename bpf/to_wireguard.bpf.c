// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Egress of a WireGuard device: the last hook before encryption. */
#include "lib/flow.h"
#include "lib/masquerade.h"
#include "lib/trace.h"
#include "lib/tunnel.h"

/* Notes the mapping's port in the host's flow, whose next packets bring it along. */
static __always_inline void remember(const struct wgp_packet *before, __be16 port)
{
	struct wgp_flow *flow;

	if (!port || before->fragment)
		return;
	flow = wgp_flow_find(before, 0, 0);
	if (!flow)
		return;
	flow->nat_time = wgp_now() >> 30;
	flow->nat_port = port;
}

/* What goes on to be encrypted. Only a large packet needs its headers looked at. */
static __always_inline void count(struct __sk_buff *skb, struct wgp_work *w,
				  const struct wgp_config *cfg, __u32 mark)
{
	__u32 index = skb->protocol == bpf_htons(ETH_P_IPV6) ? WGP_TUNNEL_OUT6 : WGP_TUNNEL_OUT4;
	__u32 header = 0;
	int is_tcp = 0;

	if (skb->gso_size && !wgp_parse(skb)) {
		header = w->packet.payload_offset - w->packet.network_offset;
		is_tcp = w->packet.protocol == IPPROTO_TCP;
	}
	/* What a pod's device has redirected has no route, whose MTU could be another. */
	wgp_tunnel_count(skb, cfg, index, skb->len, header, is_tcp,
			 (cfg->flags & WGP_CONFIG_DIRECT) &&
				 (mark & (WGP_MARK_COUNTED | WGP_MARK_HOST)) == WGP_MARK_COUNTED);
}

static __always_inline int decide(struct __sk_buff *skb, struct wgp_work *w,
				  const struct wgp_config *cfg)
{
	__u32 mark = skb->mark;
	union wgp_address tunnel;
	const struct wgp_packet *p = &w->packet;
	int parsed, reason;
	__be16 port;

	/* A local pod's packet, steered and counted: its source stays. */
	if ((mark & (WGP_MARK_COUNTED | WGP_MARK_HOST)) == WGP_MARK_COUNTED) {
		skb->mark = mark & ~WGP_MARK_COUNTED;
		if (wgp_is_tracing())
			wgp_parse(skb);
		return WGP_PASS;
	}
	if (mark & WGP_MARK_HOST)
		skb->mark = 0;
	parsed = wgp_parse(skb);
	if (parsed)
		return wgp_unparsed(skb, w, cfg, WGP_HOOK_TO_WIREGUARD, parsed);
	if (!cfg)
		return WGP_PASS;
	port = mark >> WGP_MARK_PORT_SHIFT;
	if ((mark & WGP_MARK_HOST) && port && wgp_tunnel_address(cfg, p->family, &tunnel)) {
		reason = wgp_rewrite(skb, p, 1, &tunnel, port);
	} else {
		/* What somebody's route has led here: a pod's source stays, the node's does not. */
		if (!(mark & WGP_MARK_HOST)) {
			const struct wgp_local *local = wgp_local(p->family, &p->source);

			wgp_clamp_mss(skb, p, cfg, WGP_HOOK_TO_WIREGUARD);
			if (!local || local->kind == WGP_LOCAL_POD)
				return WGP_PASS;
		}
		w->verdict.port = 0;
		reason = wgp_is_icmp_error(p) ? wgp_error_out(skb) : wgp_masquerade_out(skb);
		if (!reason)
			remember(p, w->verdict.port);
	}
	if (reason)
		return wgp_drop(skb, p, WGP_HOOK_TO_WIREGUARD, reason);
	wgp_count(p, WGP_HOOK_TO_WIREGUARD, WGP_REASON_MASQUERADED);
	return WGP_PASS;
}

SEC("tc")
int to_wireguard(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	struct wgp_work *w = wgp_work();
	__u32 mark = skb->mark;
	int verdict;

	if (!w || wgp_is_inert(cfg))
		return WGP_PASS;
	w->packet.family = 0;
	verdict = wgp_traced(skb, WGP_HOOK_TO_WIREGUARD, decide(skb, w, cfg));
	if (verdict == WGP_PASS && cfg)
		count(skb, w, cfg, mark);
	return verdict;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
