// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where a measurement's packets end: counts the UDP packets of its port, and drops them. */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include "lib/program.h"
#include "bench/bench_abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wgp_bench_count);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sink SEC(".maps");

static __always_inline int is_ours(struct __sk_buff *skb)
{
	__u32 offset = constants.link_header_length;
	__be16 port = 0;
	__u8 protocol = 0;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, offset + 9, &protocol, 1))
			return 0;
		offset += sizeof(struct iphdr);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, offset + 6, &protocol, 1))
			return 0;
		offset += sizeof(struct ipv6hdr);
	} else {
		return 0;
	}
	if (protocol != IPPROTO_UDP || bpf_skb_load_bytes(skb, offset + 2, &port, 2))
		return 0;
	return port == bpf_htons(WGP_BENCH_PORT);
}

SEC("tc")
int bench_sink(struct __sk_buff *skb)
{
	struct wgp_bench_count *count;
	__u32 zero = 0;

	if (!is_ours(skb))
		return WGP_PASS;
	count = bpf_map_lookup_elem(&sink, &zero);
	if (count) {
		__u32 headers = skb->protocol == bpf_htons(ETH_P_IP) ? sizeof(struct iphdr)
								     : sizeof(struct ipv6hdr);
		__u32 payload = skb->len - constants.link_header_length - headers - 8;

		/* The kernel has not counted the segments of what a TUN device was given. */
		count->packets += skb->gso_size ? (payload + skb->gso_size - 1) / skb->gso_size : 1;
		count->bytes += skb->len - constants.link_header_length;
	}
	return WGP_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
