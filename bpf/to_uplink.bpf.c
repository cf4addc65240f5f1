// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Egress of an uplink: the node's own traffic, and pods' that took the stack. */
/* A pod's device and WireGuard's ask conntrack; what comes here has been through it. */
#define WGP_NO_CONNTRACK
#include "lib/steer.h"
#include "lib/trace.h"

/* WireGuard's own outer packet: a mark alone proves nothing. */
static __always_inline int is_outer(const struct __sk_buff *skb, const struct wgp_packet *p,
				    const struct wgp_config *cfg)
{
	int is_marked = (skb->mark & cfg->mark) == cfg->mark ||
			(cfg->old_mark && (skb->mark & cfg->old_mark) == cfg->old_mark);

	if (!is_marked || p->protocol != IPPROTO_UDP)
		return 0;
	if (p->fragment != WGP_FRAGMENT_LATER && !wgp_is_own_port(cfg, p->family, p->source_port))
		return 0;
	return wgp_endpoint(p->family, &p->destination) != NULL;
}

/*
 * The answer goes to the device that the packet came in by, or, for what the node itself
 * has sent, in again by the uplink as if the far side had sent it.
 */
static __always_inline int too_big(struct __sk_buff *skb, const struct wgp_packet *p, __u32 mtu)
{
	if (wgp_answer_too_big(skb, p, mtu, 0))
		return wgp_drop(skb, p, WGP_HOOK_TO_UPLINK, WGP_REASON_DROP_TOO_BIG_QUIET);
	wgp_drop(skb, p, WGP_HOOK_TO_UPLINK, WGP_REASON_DROP_TOO_BIG);
	if (skb->ingress_ifindex)
		return bpf_redirect_neigh(skb->ingress_ifindex, NULL, 0, 0);
	skb->mark = WGP_MARK_COUNTED;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __always_inline int forward(struct __sk_buff *skb, const struct wgp_packet *p,
				   const struct wgp_config *cfg, const struct wgp_verdict *verdict)
{
	__u32 mtu = wgp_exceeds(skb, p, cfg);

	if (mtu && (p->may_split || p->fragment))
		wgp_count(p, WGP_HOOK_TO_UPLINK, WGP_REASON_OVERSIZED);
	else if (mtu)
		return too_big(skb, p, mtu);
	return wgp_tunnel(skb, p, cfg, WGP_HOOK_TO_UPLINK, verdict);
}

static __always_inline int decide(struct __sk_buff *skb, struct wgp_work *w,
				  const struct wgp_config *cfg)
{
	struct wgp_packet *p = &w->packet;
	const struct wgp_verdict *verdict = &w->verdict;
	__u32 counted = skb->mark & WGP_MARK_COUNTED;
	__u32 ifindex = skb->ingress_ifindex;
	__u32 leak;
	int parsed;

	if (counted)
		skb->mark &= ~WGP_MARK_COUNTED;
	parsed = wgp_parse(skb);
	if (parsed)
		return wgp_unparsed(skb, w, cfg, WGP_HOOK_TO_UPLINK, parsed);
	if (!cfg || !wgp_enabled(cfg, p) || is_outer(skb, p, cfg))
		return WGP_PASS;
	/*
	 * What was decrypted here goes out again to nobody's pod, unless netfilter has led it
	 * to another node: then its source is this node's own.
	 */
	if (ifindex && (ifindex == cfg->ifindex4 || ifindex == cfg->ifindex6) &&
	    !wgp_local(p->family, &p->source) &&
	    wgp_slot_of(p->family, &p->destination) != WGP_SLOT_OUTSIDE)
		return wgp_drop(skb, p, WGP_HOOK_TO_UPLINK, WGP_REASON_DROP_NOT_HERE);
	w->context.hook = WGP_HOOK_TO_UPLINK;
	w->context.ifindex = ifindex;
	w->context.reply_ifindex = skb->ifindex;
	w->context.counted = counted;
	w->context.is_pod = 0;
	wgp_decide(skb, w, cfg);
	if (verdict->action == WGP_ACTION_DROP)
		return wgp_drop(skb, p, WGP_HOOK_TO_UPLINK, WGP_REASON_DROP_NO_TUNNEL);
	if (wgp_is_steered(verdict))
		return forward(skb, p, cfg, verdict);
	leak = wgp_leak(verdict, cfg);
	if (leak == WGP_REASON_NONE && wgp_carries_pods(skb, p, cfg))
		leak = cfg->flags & WGP_CONFIG_STRICT ? WGP_REASON_DROP_ENCAPSULATED
						      : WGP_REASON_CLEAR_ENCAPSULATED;
	if (leak == WGP_REASON_NONE)
		return WGP_PASS;
	if (leak >= WGP_REASON_FIRST_DROP) {
		wgp_flow_mark(p, ifindex, 0, leak);
		return wgp_drop(skb, p, WGP_HOOK_TO_UPLINK, leak);
	}
	wgp_flow_mark(p, ifindex, WGP_FLOW_CLEAR, 0);
	wgp_count(p, WGP_HOOK_TO_UPLINK, leak);
	return WGP_PASS;
}

SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	struct wgp_work *w = wgp_work();

	if (!w || wgp_is_inert(cfg))
		return WGP_PASS;
	w->verdict.slot = 0;
	return wgp_traced(skb, WGP_HOOK_TO_UPLINK, decide(skb, w, cfg));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
