/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Does netfilter know a flow? Asked by a flow's first packet, where the kernel can tell. */
#ifndef WGPLANE_LIB_CONNTRACK_H
#define WGPLANE_LIB_CONNTRACK_H

#include "lookup.h"

/* A body, or libbpf takes the kernel's function for another one. */
struct nf_conn {
	unsigned long status;
} __attribute__((preserve_access_index));

/* struct bpf_ct_opts of the kernel, its first 12 bytes. */
struct wgp_conntrack_options {
	__s32 netns_id; /* -1: the one of the packet's device */
	__s32 error;
	__u8 protocol;
	__u8 direction;
	__u8 reserved[2];
};

#ifdef WGP_NO_CONNTRACK
static __always_inline int wgp_conntrack_knows(struct __sk_buff *skb, const struct wgp_packet *p)
{
	/* Used, or clang hands functions garbage for an argument that they do not need. */
	asm volatile("" : : "r"(skb), "r"(p));
	return 0;
}
#else
/*
 * Not weak: asking whether a module's function is there is what older libbpf (1.1) cannot
 * put right. Where it is not, the program is refused and the plain one takes its place.
 */
extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					 __u32 tuple_size, struct wgp_conntrack_options *options,
					 __u32 options_size) __ksym;
extern void bpf_ct_release(struct nf_conn *connection) __ksym;

/* Has conntrack an entry for this packet, in either direction? TCP and UDP only. */
static __always_inline int wgp_conntrack_knows(struct __sk_buff *skb, const struct wgp_packet *p)
{
	struct wgp_conntrack_options options = {.netns_id = -1, .protocol = p->protocol};
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *connection;

	if (p->fragment || (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP))
		return 0;
	if (p->family == 4) {
		tuple.ipv4.saddr = p->source.v4;
		tuple.ipv4.daddr = p->destination.v4;
		tuple.ipv4.sport = p->source_port;
		tuple.ipv4.dport = p->destination_port;
		connection = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &options,
					       sizeof(options));
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, p->source.bytes, 16);
		__builtin_memcpy(tuple.ipv6.daddr, p->destination.bytes, 16);
		tuple.ipv6.sport = p->source_port;
		tuple.ipv6.dport = p->destination_port;
		connection = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv6), &options,
					       sizeof(options));
	}
	if (!connection)
		return 0;
	bpf_ct_release(connection);
	return 1;
}
#endif

#endif
