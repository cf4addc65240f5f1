/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs remember of traffic: flows, the masquerade, fragments, events.
 * Part of wgplane_abi.h, whose rules hold here.
 */
#ifndef WGPLANE_FLOWS_H
#define WGPLANE_FLOWS_H

#include <linux/types.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/* ---- flows ------------------------------------------------------------- */

/* Maps "flows4/6": one direction of a flow, as it enters the node. */
struct wgp_flow_key4 {
	__be32 source;
	__be32 destination;
	__be16 source_port; /* ICMP echo: the identifier */
	__be16 destination_port; /* ICMP: type << 8 | code, as in NetFlow */
	__u32 ifindex; /* device it came in by; 0: the host itself */
	__u8 protocol;
	__u8 pad[3];
};
struct wgp_flow_key6 {
	__u8 source[16];
	__u8 destination[16];
	__be16 source_port;
	__be16 destination_port;
	__u32 ifindex;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct wgp_flow_key4) == 20, "flow_key4");
_Static_assert(sizeof(struct wgp_flow_key6) == 44, "flow_key6");

enum wgp_flow_flag {
	WGP_FLOW_TUNNELLED = 1 << 0, /* at least one packet went through WireGuard */
	WGP_FLOW_CLEAR = 1 << 1, /* at least one left for another node in clear */
	WGP_FLOW_HOST = 1 << 2, /* the source is the node itself: masqueraded */
	WGP_FLOW_PASS = 1 << 3, /* never steered: the far peer would refuse it */
	WGP_FLOW_PROMISED = 1 << 4, /* its source is one whose packets are to be encrypted */
	WGP_FLOW_STACK = 1 << 5, /* netfilter knows it: never led around the stack */
	WGP_FLOW_SPOOFED = 1 << 6, /* its source is not the pod's */
	WGP_FLOW_EXEMPT = 1 << 7, /* in clear by the operator's choice */
};

struct wgp_flow {
	__u64 packets;
	__u64 bytes; /* of the network layer: IP header and up */
	__u64 first_ns; /* CLOCK_MONOTONIC */
	__u64 last_ns;
	__u32 slot; /* of the destination */
	__u32 generation; /* of that slot when it was looked up */
	__u32 config_generation;
	__u16 flags; /* enum wgp_flow_flag */
	__u8 hook; /* enum wgp_hook: where it was counted first */
	__u8 tcp_flags; /* all TCP flags seen, or'ed */
	__u32 nat_time; /* when nat_port was looked up, 2^30 ns */
	__be16 nat_port; /* the masquerade's port, 0 none known */
	__u8 lane; /* reserved: which of the slot's lanes it takes; the first is taken now */
	__u8 pad;
	__u32 reason; /* enum wgp_reason of its last drop */
	__u32 jiffies; /* low 32 bits, when last_ns was written: the clock is asked once a jiffy */
};
_Static_assert(sizeof(struct wgp_flow) == 64, "flow");
/* Events and traces have eight bits for them. */
_Static_assert(WGP_FLOW_EXEMPT <= 0xff, "flow flags");

/* ---- masquerade -------------------------------------------------------- */

enum wgp_masquerade_direction {
	WGP_MASQUERADE_OUT = 0, /* key is the host's own tuple */
	WGP_MASQUERADE_IN = 1, /* key is the tuple of the reply as it arrives */
};

/* Maps "masquerade4/6": both halves of a mapping, in one hash. */
struct wgp_masquerade_key4 {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 direction; /* enum wgp_masquerade_direction */
	__u8 pad[2];
};
struct wgp_masquerade_key6 {
	__u8 source[16];
	__u8 destination[16];
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 direction;
	__u8 pad[2];
};
_Static_assert(sizeof(struct wgp_masquerade_key4) == 16, "masquerade_key4");
_Static_assert(sizeof(struct wgp_masquerade_key6) == 40, "masquerade_key6");

/* OUT: the source to write. IN: the destination (the host's own) to restore. */
struct wgp_masquerade {
	__u64 last_ns;
	__u8 address[16]; /* IPv4 in the first four bytes */
	__be16 port; /* ICMP echo: the identifier */
	__u8 tcp_flags;
	__u8 pad[5];
};
_Static_assert(sizeof(struct wgp_masquerade) == 32, "masquerade");

/* ---- fragments --------------------------------------------------------- */

/* Maps "fragments4/6": LRU, a fragmented reply's first fragment tells where the others go. */
struct wgp_fragment_key4 {
	__be32 source;
	__be32 destination;
	__u32 identification;
	__u8 protocol;
	__u8 pad[3];
};
struct wgp_fragment_key6 {
	__u8 source[16];
	__u8 destination[16];
	__u32 identification;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct wgp_fragment_key4) == 16, "fragment_key4");
_Static_assert(sizeof(struct wgp_fragment_key6) == 40, "fragment_key6");

struct wgp_fragment_value {
	__u64 time_ns;
	__u8 address[16]; /* the destination to write */
};
_Static_assert(sizeof(struct wgp_fragment_value) == 24, "fragment_value");

/* ---- events ------------------------------------------------------------ */

enum wgp_event_kind {
	WGP_EVENT_DROP = 1,
	WGP_EVENT_FLOW = 2, /* a flow's entry is made */
	WGP_EVENT_TRACE = 3, /* a packet that somebody wants to see: struct wgp_trace */
};

/* Map "events": ring buffer of these, or of struct wgp_trace. */
struct wgp_event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u8 source[16]; /* IPv4 in the first four bytes */
	__u8 destination[16];
	__be16 source_port; /* as in the flow's key */
	__be16 destination_port;
	__u32 bytes;
	__u32 ifindex; /* device it came in by, 0: the node itself */
	__u8 kind; /* enum wgp_event_kind */
	__u8 hook; /* enum wgp_hook */
	__u8 reason; /* enum wgp_reason of a drop, of a trace the last that was counted */
	__u8 family;
	__u8 protocol;
	__u8 flags; /* of a flow: enum wgp_flow_flag */
	__u8 pad[6];
};
_Static_assert(sizeof(struct wgp_event) == 64, "event");

enum wgp_trace_verdict {
	WGP_TRACE_PASS = 0, /* goes on as the stack or another program says */
	WGP_TRACE_DROP = 1,
	WGP_TRACE_REDIRECT = 2, /* into another device */
};

/* Bytes of a packet that a trace has. */
#define WGP_TRACE_BYTES 256

/* A packet as it leaves a hook. */
struct wgp_trace {
	struct wgp_event event;
	__u32 length; /* of the packet, from its link header on */
	__u32 slot; /* of the destination, where the hook looks at it */
	__u16 captured; /* bytes of `data` */
	__u8 verdict; /* enum wgp_trace_verdict */
	__u8 is_ethernet; /* `data` begins with an Ethernet header, else with IP's */
	__u16 segments; /* that it is made into, 1 without GSO */
	__u16 pad;
	__u8 data[WGP_TRACE_BYTES];
};
_Static_assert(sizeof(struct wgp_trace) == 336, "trace");

/* Which packets are traced, in either direction. Addresses and masks: IPv4 in the first word. */
struct wgp_trace_filter {
	__be32 address[4]; /* of one side */
	__be32 mask[4];
	__be32 other[4]; /* of the other side */
	__be32 other_mask[4];
	__be16 port; /* 0: any */
	__be16 other_port;
	__u8 family; /* 0: any */
	__u8 protocol; /* 0: any */
	__u8 pad[2];
};
_Static_assert(sizeof(struct wgp_trace_filter) == 72, "trace_filter");

/*
 * Map "event_control": one entry, written by who listens. Events are made until the
 * times given (CLOCK_MONOTONIC), so that a listener that dies leaves nothing on.
 */
struct wgp_event_control {
	__u64 drops_until_ns;
	__u64 flows_until_ns;
	__u64 traces_until_ns;
	struct wgp_trace_filter filter;
	__u32 sample; /* one of so many drops; 0 or 1: all */
	__u32 pad;
};
_Static_assert(sizeof(struct wgp_event_control) == 104, "event_control");

/* ---- audit ------------------------------------------------------------- */

/* Map "tunnel": per-CPU array by these, of what goes into WireGuard's devices and comes out. */
enum wgp_tunnel_index {
	WGP_TUNNEL_OUT4 = 0,
	WGP_TUNNEL_OUT6 = 1,
	WGP_TUNNEL_IN4 = 2,
	WGP_TUNNEL_IN6 = 3,
	WGP_TUNNEL_COUNT = 4,
};

struct wgp_tunnel_count {
	__u64 packets; /* segments */
	__u64 bytes; /* of IP */
	__u64 message_bytes; /* of the data messages that carry them, as WireGuard counts them */
	__u64 slack; /* bytes of padding and of repeated headers that there may be beside */
};

/* A data message's header and tag (WireGuard, section 5.4.6), and what its content is padded to. */
#define WGP_MESSAGE_OVERHEAD 32
#define WGP_MESSAGE_PADDING 16

/* Map "icmp_limit": per CPU, one entry. */
struct wgp_icmp_limit {
	__u64 window; /* tenth of a second since boot */
	__u64 count;
};

#pragma GCC diagnostic pop

#endif /* WGPLANE_FLOWS_H */
