/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a packet to the few values that decide its way.
 *
 * Headers are read where they are, or copied with bpf_skb_load_bytes where they are not in the
 * packet's linear part.
 */
#ifndef WGPLANE_LIB_PARSE_H
#define WGPLANE_LIB_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include "maps.h"

/* ICMP types and the echo header (RFC 792, RFC 4443); <linux/icmp.h> would pull in libc. */
#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

struct wgp_icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 identifier;
	__be16 sequence;
};

/* Segments of any size, which fit: SCTP (GSO_BY_FRAGS of the kernel). */
#define WGP_GSO_BY_FRAGS 0xffff

#define WGP_IP_OFFSET_MASK 0x1fff
#define WGP_IP_DONT_FRAGMENT 0x4000
#define WGP_IP_MORE_FRAGMENTS 0x2000

#define WGP_TCP_FIN 0x01
#define WGP_TCP_SYN 0x02
#define WGP_TCP_RST 0x04
#define WGP_TCP_ACK 0x10

enum wgp_fragment {
	WGP_FRAGMENT_NONE = 0,
	WGP_FRAGMENT_FIRST = 1, /* has the transport header */
	WGP_FRAGMENT_LATER = 2, /* has not */
};

union wgp_address {
	__be32 v4;
	__be32 words[4];
	__u8 bytes[16];
};

struct wgp_packet {
	union wgp_address source;
	union wgp_address destination;
	__u32 network_offset; /* of the IP header, from skb->data */
	__u32 transport_offset; /* of the transport header */
	__u32 payload_offset; /* behind the transport header, where that is known */
	__u32 identification; /* of a fragment, as it stands in the header */
	__u32 packets; /* segments when GSO, else 1 */
	__u32 bytes; /* IP headers and payload of all segments */
	__be16 source_port; /* ICMP echo: the identifier; 0 where there is none */
	__be16 destination_port;
	__u8 family; /* 4 or 6 */
	__u8 protocol;
	__u8 fragment; /* enum wgp_fragment */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 has_port; /* TCP, UDP or an echo message with its header here */
	__u8 hop_limit; /* TTL */
	__u8 may_split; /* IPv4 without DF */
	__u8 reason; /* enum wgp_reason that it was counted under last, for a trace */
};

static __always_inline int wgp_is_icmp(const struct wgp_packet *p)
{
	return p->protocol == (p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

/* A hook's circumstances. */
struct wgp_context {
	__u32 hook; /* enum wgp_hook */
	__u32 ifindex; /* device the packet came in by, 0: from the host */
	__u32 reply_ifindex; /* uplink by which the host's answers leave, else 0 */
	__u32 counted; /* another hook has counted the packet */
	__u32 is_pod; /* the hook is a pod's: all its flows are recorded, its source checked */
};

/* What a hook needs to know of a packet to act on it. */
struct wgp_verdict {
	__u32 slot;
	__u32 action; /* enum wgp_action */
	__u32 flags; /* enum wgp_flow_flag */
	__u32 ifindex; /* lane's device when the action is tunnel */
	__u32 port; /* of the host's masquerade, network order; 0: to be looked up */
};

/*
 * The packet at hand. It lies in a map, one for each CPU, so that functions find it
 * without being handed pointers: kernels before 5.12 allow none, and what the verifier
 * cannot follow it need not follow along every path. Programs do not nest on a CPU.
 */
struct wgp_work {
	struct wgp_packet packet;
	struct wgp_packet quoted; /* the one inside an ICMP error */
	struct wgp_context context;
	struct wgp_verdict verdict;
	struct wgp_flow fresh; /* an entry being made */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wgp_work);
} work SEC(".maps");

static __always_inline struct wgp_work *wgp_work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&work, &zero);
}

/* A function that the verifier checks once, for all numbers it may get. */
#define WGP_FUNCTION __attribute__((noinline, unused))

enum wgp_parsed {
	WGP_PARSED = 0,
	WGP_NOT_IP = 1,
	WGP_MALFORMED = 2,
};

/* A TCP segment that opens a connection: SYN without ACK. */
static __always_inline int wgp_starts_connection(const struct wgp_packet *p)
{
	return (p->tcp_flags & (WGP_TCP_SYN | WGP_TCP_ACK)) == WGP_TCP_SYN;
}

/*
 * A header at an offset of at most 65,000: in the packet, else copied into the buffer of its size. NULL: the
 * packet is too short.
 */
static __always_inline const void *wgp_header(struct __sk_buff *skb, __u32 offset, void *buffer,
					      __u32 size)
{
	const void *header = (void *)(long)skb->data + offset;

	if (header + size <= (void *)(long)skb->data_end)
		return header;
	return bpf_skb_load_bytes(skb, offset, buffer, size) ? NULL : buffer;
}

/* Expects transport_offset, which is handed over too, and protocol; fills ports, flags and counts. */
static __always_inline int wgp_parse_transport(struct __sk_buff *skb, struct wgp_packet *packet,
					       __u32 offset)
{
	__u32 header_end = offset;
	__u32 segments;

	if (packet->fragment != WGP_FRAGMENT_LATER) {
		if (packet->protocol == IPPROTO_TCP) {
			struct tcphdr buffer;
			const struct tcphdr *tcp = wgp_header(skb, offset, &buffer, sizeof(buffer));

			if (!tcp)
				return WGP_MALFORMED;
			packet->source_port = tcp->source;
			packet->destination_port = tcp->dest;
			packet->tcp_flags = ((const __u8 *)tcp)[13];
			packet->has_port = 1;
			header_end += tcp->doff * 4;
		} else if (packet->protocol == IPPROTO_UDP) {
			__be16 buffer[4];
			const __be16 *udp = wgp_header(skb, offset, buffer, sizeof(buffer));

			if (!udp)
				return WGP_MALFORMED;
			packet->source_port = udp[0];
			packet->destination_port = udp[1];
			packet->has_port = 1;
			header_end += sizeof(buffer);
		} else if (packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6) {
			struct wgp_icmp icmp;
			__u8 echo = packet->family == 4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST;
			__u8 reply = packet->family == 4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY;

			if (bpf_skb_load_bytes(skb, offset, &icmp, sizeof(icmp)))
				return WGP_MALFORMED;
			packet->icmp_type = icmp.type;
			packet->icmp_code = icmp.code;
			if (icmp.type == echo || icmp.type == reply) {
				packet->source_port = icmp.identifier;
				packet->has_port = 1;
			}
		}
	}
	packet->payload_offset = header_end;
	packet->packets = 1;
	packet->bytes = skb->len - packet->network_offset;
	segments = skb->gso_segs;
	/* What virtual machines, and user space by a TUN device, have put together nobody has counted yet. */
	if (!segments && skb->gso_size && skb->gso_size != WGP_GSO_BY_FRAGS &&
	    header_end < skb->len)
		segments = (skb->len - header_end + skb->gso_size - 1) / skb->gso_size;
	if (segments > 1) {
		packet->packets = segments;
		packet->bytes += (segments - 1) * (header_end - packet->network_offset);
	}
	return WGP_PARSED;
}

static __always_inline int wgp_parse_ipv4(struct __sk_buff *skb, struct wgp_packet *packet)
{
	struct iphdr buffer;
	const struct iphdr *ip =
		wgp_header(skb, constants.link_header_length, &buffer, sizeof(buffer));
	__u32 header_length, offset;
	__u16 fragment;

	packet->family = 4;
	if (!ip)
		return WGP_MALFORMED;
	header_length = ip->ihl * 4;
	if (header_length < sizeof(*ip))
		return WGP_MALFORMED;
	packet->protocol = ip->protocol;
	packet->source.v4 = ip->saddr;
	packet->destination.v4 = ip->daddr;
	offset = constants.link_header_length + header_length;
	packet->transport_offset = offset;
	packet->hop_limit = ip->ttl;
	packet->identification = ip->id;
	fragment = bpf_ntohs(ip->frag_off);
	packet->may_split = !(fragment & WGP_IP_DONT_FRAGMENT);
	if (fragment & WGP_IP_OFFSET_MASK)
		packet->fragment = WGP_FRAGMENT_LATER;
	else if (fragment & WGP_IP_MORE_FRAGMENTS)
		packet->fragment = WGP_FRAGMENT_FIRST;
	return wgp_parse_transport(skb, packet, offset);
}

/* Header of hop-by-hop, routing and destination options, and of a fragment (RFC 8200). */
struct wgp_extension {
	__u8 next;
	__u8 length; /* in 8 octets beyond the first; reserved in a fragment header */
	__be16 fragment;
	__be32 identification;
};

static __always_inline int wgp_is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT;
}

static __always_inline int wgp_parse_ipv6(struct __sk_buff *skb, struct wgp_packet *packet)
{
	struct ipv6hdr buffer;
	const struct ipv6hdr *ip =
		wgp_header(skb, constants.link_header_length, &buffer, sizeof(buffer));
	__u32 offset = constants.link_header_length + sizeof(*ip);
	__u8 next;

	packet->family = 6;
	if (!ip)
		return WGP_MALFORMED;
	__builtin_memcpy(&packet->source, &ip->saddr, 16);
	__builtin_memcpy(&packet->destination, &ip->daddr, 16);
	packet->hop_limit = ip->hop_limit;
	next = ip->nexthdr;
#pragma unroll
	for (int i = 0; i < WGP_MAX_EXTENSION_HEADERS; i++) {
		struct wgp_extension extension;

		if (!wgp_is_extension(next))
			break;
		if (bpf_skb_load_bytes(skb, offset, &extension, sizeof(extension)))
			return WGP_MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			__u16 fragment = bpf_ntohs(extension.fragment);

			packet->identification = extension.identification;
			if (fragment & 0xfff8)
				packet->fragment = WGP_FRAGMENT_LATER;
			else if (fragment & 1)
				packet->fragment = WGP_FRAGMENT_FIRST;
			offset += sizeof(extension);
		} else {
			offset += (extension.length + 1) * 8;
		}
		next = extension.next;
		if (packet->fragment == WGP_FRAGMENT_LATER)
			break;
	}
	/* More of them than we walk. */
	if (wgp_is_extension(next) && packet->fragment != WGP_FRAGMENT_LATER)
		return WGP_MALFORMED;
	packet->protocol = next;
	packet->transport_offset = offset;
	return wgp_parse_transport(skb, packet, offset);
}

/*
 * Still a VLAN's after the kernel has taken one tag off. With a first tag of VLAN 0 it takes
 * off another, unseen, and routes what is inside; with another VLAN the frame is that one's.
 */
static __always_inline int wgp_is_wrapped(const struct __sk_buff *skb)
{
	if (!constants.link_header_length ||
	    (skb->protocol != bpf_htons(ETH_P_8021Q) && skb->protocol != bpf_htons(ETH_P_8021AD)))
		return 0;
	return !skb->vlan_present || !(skb->vlan_tci & 0xfff);
}

/*
 * Reads the packet at hand into wgp_work()->packet. Expects skb->data at the link header
 * (Ethernet) or the IP header (L3 device), as constants.link_header_length says.
 * Returns enum wgp_parsed.
 */
WGP_FUNCTION int wgp_parse(struct __sk_buff *skb)
{
	struct wgp_work *w = wgp_work();
	struct wgp_packet *packet;
	__u8 version;

	if (!w)
		return WGP_NOT_IP;
	packet = &w->packet;
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->network_offset = constants.link_header_length;
	if (constants.link_header_length) {
		if (skb->protocol == bpf_htons(ETH_P_IP))
			return wgp_parse_ipv4(skb, packet);
		if (skb->protocol == bpf_htons(ETH_P_IPV6))
			return wgp_parse_ipv6(skb, packet);
		return WGP_NOT_IP;
	}
	if (bpf_skb_load_bytes(skb, 0, &version, 1))
		return WGP_MALFORMED;
	if (version >> 4 == 4)
		return wgp_parse_ipv4(skb, packet);
	if (version >> 4 == 6)
		return wgp_parse_ipv6(skb, packet);
	return WGP_NOT_IP;
}

#endif
