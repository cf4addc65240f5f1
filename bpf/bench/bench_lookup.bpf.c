// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A yardstick: the longest prefix of an IP packet's destination, and nothing else. */
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include "lib/maps.h"

SEC("tc")
int bench_lookup(struct __sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct wgp_prefix4 key = {.prefix_length = 32};

		if (bpf_skb_load_bytes(skb, constants.link_header_length + 16, &key.address, 4))
			return WGP_SHOT;
		return bpf_map_lookup_elem(&route_prefixes4, &key) ? WGP_PASS : WGP_SHOT;
	} else {
		struct wgp_prefix6 key;

		/* No constant for the section of those that the loader sets. */
		key.prefix_length = 128;
		if (bpf_skb_load_bytes(skb, constants.link_header_length + 24, key.address, 16))
			return WGP_SHOT;
		return bpf_map_lookup_elem(&route_prefixes6, &key) ? WGP_PASS : WGP_SHOT;
	}
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
