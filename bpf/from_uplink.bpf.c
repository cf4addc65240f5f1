// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ingress of an uplink: who may speak WireGuard to us, and what arrives in clear. */
#include "lib/flow.h"
#include "lib/guard.h"
#include "lib/trace.h"

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

/* Does anybody listen on a UDP port of this packet's destination? */
static __always_inline int is_listening(struct __sk_buff *skb, const struct wgp_packet *p,
					__be16 port)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = sizeof(tuple.ipv4);
	struct bpf_sock *sock;

	if (p->family == 4) {
		tuple.ipv4.saddr = p->source.v4;
		tuple.ipv4.daddr = p->destination.v4;
		tuple.ipv4.sport = p->source_port;
		tuple.ipv4.dport = port;
	} else {
		size = sizeof(tuple.ipv6);
		__builtin_memcpy(tuple.ipv6.saddr, p->source.bytes, 16);
		__builtin_memcpy(tuple.ipv6.daddr, p->destination.bytes, 16);
		tuple.ipv6.sport = p->source_port;
		tuple.ipv6.dport = port;
	}
	sock = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return 0;
	bpf_sk_release(sock);
	return 1;
}

/*
 * While the port changes, a packet for the one that WireGuard has no more, or not yet, is led
 * to the one that it has. The sockets themselves say which that is, so no packet is too early
 * or too late.
 */
static __always_inline void lead_to_port(struct __sk_buff *skb, const struct wgp_packet *p,
					 const struct wgp_config *cfg)
{
	__u16 own = p->family == 4 ? cfg->port4 : cfg->port6;
	__u16 other = p->family == 4 ? cfg->other_port4 : cfg->other_port6;
	__be16 port = p->destination_port == bpf_htons(own) ? bpf_htons(other) : bpf_htons(own);

	if (!other || is_listening(skb, p, p->destination_port) || !is_listening(skb, p, port))
		return;
	if (!bpf_l4_csum_replace(skb, p->transport_offset + 6, p->destination_port, port,
				 BPF_F_MARK_MANGLED_0 | 2))
		bpf_skb_store_bytes(skb, p->transport_offset + 2, &port, 2, 0);
}

static __always_inline int decide(struct __sk_buff *skb, struct wgp_work *w,
				  const struct wgp_config *cfg)
{
	const struct wgp_local *local;
	struct wgp_packet *p = &w->packet;
	__u32 source, strict;
	int parsed;

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
		    wgp_is_own_port(cfg, p->family, p->destination_port)) {
			if ((cfg->flags & WGP_CONFIG_ROAMING) ||
			    wgp_endpoint(p->family, &p->source)) {
				lead_to_port(skb, p, cfg);
				return WGP_PASS;
			}
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

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	struct wgp_work *w = wgp_work();

	if (!w || wgp_is_inert(cfg))
		return WGP_PASS;
	w->verdict.slot = 0;
	return wgp_traced(skb, WGP_HOOK_FROM_UPLINK, decide(skb, w, cfg));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
