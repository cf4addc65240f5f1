// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Egress of a WireGuard device: the last hook before encryption. */
#include "lib/masquerade.h"

SEC("tc")
int to_wireguard(struct __sk_buff *skb)
{
	const struct wgp_config *cfg = wgp_config();
	__u32 mark = skb->mark;
	struct wgp_packet packet;
	int parsed, reason;

	skb->mark = mark & ~(WGP_MARK_COUNTED | WGP_MARK_HOST);
	/* A local pod's packet, steered and counted: its source stays. */
	if ((mark & (WGP_MARK_COUNTED | WGP_MARK_HOST)) == WGP_MARK_COUNTED)
		return WGP_PASS;
	parsed = wgp_parse(skb, &packet);
	if (parsed)
		return wgp_pass_unparsed(skb, &packet, WGP_HOOK_TO_WIREGUARD, parsed);
	if (!cfg)
		return WGP_PASS;
	/* What somebody's route has led here: a pod's source stays, the node's does not. */
	if (!(mark & WGP_MARK_HOST)) {
		const struct wgp_local *local = wgp_local(packet.family, &packet.source);

		if (!local || local->kind == WGP_LOCAL_POD)
			return WGP_PASS;
	}
	reason = wgp_masquerade_out(skb, &packet, cfg);
	if (reason)
		return wgp_drop(&packet, WGP_HOOK_TO_WIREGUARD, reason);
	wgp_count(&packet, WGP_HOOK_TO_WIREGUARD, WGP_REASON_MASQUERADED);
	return WGP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
