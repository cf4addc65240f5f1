// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ingress of a local pod's host-side device: everything the pod sends. */
#include "lib/steer.h"
#include "lib/trace.h"

/* Back to the pod, from the tunnel's address on this node. */
static __always_inline int too_big(struct __sk_buff *skb, const struct wgp_packet *p, __u32 mtu)
{
	if (wgp_answer_too_big(skb, p, mtu, 1))
		return wgp_drop(skb, p, WGP_HOOK_FROM_POD, WGP_REASON_DROP_TOO_BIG_QUIET);
	wgp_drop(skb, p, WGP_HOOK_FROM_POD, WGP_REASON_DROP_TOO_BIG);
	return bpf_redirect(skb->ifindex, 0);
}

/* What forwarding by the stack would have done, and into the tunnel. */
static __always_inline int forward(struct __sk_buff *skb, const struct wgp_packet *p,
				   const struct wgp_config *cfg, const struct wgp_verdict *verdict)
{
	__u32 mtu = wgp_exceeds(skb, p, cfg);

	if (mtu && p->may_split)
		wgp_count(p, WGP_HOOK_FROM_POD, WGP_REASON_OVERSIZED);
	else if (mtu)
		return too_big(skb, p, mtu);
	if (wgp_hop(skb, p))
		return wgp_drop(skb, p, WGP_HOOK_FROM_POD, WGP_REASON_DROP_REWRITE_FAILED);
	return wgp_tunnel(skb, p, cfg, WGP_HOOK_FROM_POD, verdict);
}

static __always_inline int decide(struct __sk_buff *skb, struct wgp_work *w,
				  const struct wgp_config *cfg)
{
	struct wgp_packet *p = &w->packet;
	const struct wgp_verdict *verdict = &w->verdict;
	__u32 leak;
	int parsed;

	parsed = wgp_parse(skb);
	if (cfg && wgp_is_wrapped(skb))
		return wgp_drop_wrapped(skb, p, WGP_HOOK_FROM_POD);
	if (parsed)
		return wgp_unparsed(skb, w, cfg, WGP_HOOK_FROM_POD, parsed);
	if (!cfg || !wgp_enabled(cfg, p))
		return WGP_PASS;
	w->context.hook = WGP_HOOK_FROM_POD;
	w->context.ifindex = skb->ifindex;
	w->context.reply_ifindex = 0;
	w->context.counted = 0;
	w->context.is_pod = 1;
	wgp_decide(skb, w, cfg);
	if (verdict->flags & WGP_FLOW_SPOOFED)
		return wgp_drop(skb, p, WGP_HOOK_FROM_POD, WGP_REASON_DROP_SPOOFED);
	if (verdict->action == WGP_ACTION_DROP && !(verdict->flags & WGP_FLOW_PASS))
		return wgp_drop(skb, p, WGP_HOOK_FROM_POD, WGP_REASON_DROP_NO_TUNNEL);
	if (wgp_is_steered(verdict)) {
		/* The last hop's errors, and fragments that conntrack may want whole, are the stack's. */
		if ((cfg->flags & WGP_CONFIG_DIRECT) && !(verdict->flags & WGP_FLOW_STACK) &&
		    !p->fragment && p->hop_limit > 1)
			return forward(skb, p, cfg, verdict);
	} else if (verdict->slot != WGP_SLOT_LOCAL) {
		leak = wgp_leak(verdict, cfg);
		if (leak >= WGP_REASON_FIRST_DROP) {
			wgp_flow_mark(p, w->context.ifindex, 0, leak);
			return wgp_drop(skb, p, WGP_HOOK_FROM_POD, leak);
		}
	}
	skb->mark = (skb->mark & ~WGP_MARK_HOST) | WGP_MARK_COUNTED;
	return WGP_PASS;
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	struct wgp_work *w = wgp_work();

	if (!w || wgp_is_inert(cfg))
		return WGP_PASS;
	w->verdict.slot = 0;
	return wgp_traced(skb, WGP_HOOK_FROM_POD, decide(skb, w, cfg));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
