/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one place where the kernel programs and the Swift agent agree.
 *
 * Every map key, map value, limit, mark and reason is declared here once; the
 * .bpf.c programs and the Swift module CDataplaneABI include this very file.
 *
 * Byte order: fields of type __be16/__be32 and all IPv6 addresses hold network
 * byte order as they stand in the packet; everything else is host order.
 * Layout: fixed-width types, explicit padding, a size assertion each. A change
 * of any layout here raises WGP_LAYOUT_VERSION, which names the pin directory.
 */
#ifndef WGPLANE_ABI_H
#define WGPLANE_ABI_H

#include <linux/types.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/* Version of everything in this file; pins live in a directory named for it. */
#define WGP_LAYOUT_VERSION 1

/* ---- marks ------------------------------------------------------------- */
/*
 * Chosen disjoint from kube-proxy (0x4000, 0x8000), Calico (0xffff0000 but for
 * the WireGuard bit, which is the seed's), Cilium (0x0f00) and the AWS CNI (0x80).
 * A mark proves nothing to others, and pods can set them: from_pod, a pod's first
 * hook, overwrites ours before a packet goes on.
 */

/* WireGuard's own firewall mark on outer packets (the default; see config). */
#define WGP_MARK_WIREGUARD 0x20000000
/* A hook of this node has counted the packet in a flow; cleared when it leaves the node. */
#define WGP_MARK_COUNTED 0x00002000
/* Beside it: the source is the node itself, to_wireguard masquerades it. */
#define WGP_MARK_HOST 0x00001000

/* ---- limits ------------------------------------------------------------ */

#define WGP_MAX_LANES 8
#define WGP_MAX_DESTINATIONS 16384
#define WGP_MAX_ROUTE_PREFIXES 131072
#define WGP_MAX_ROUTE_ADDRESSES 262144
#define WGP_MAX_LOCALS 16384
#define WGP_MAX_ENDPOINTS 16384
#define WGP_MAX_FLOWS 262144
#define WGP_MAX_MASQUERADE 131072
#define WGP_NODE_NAME_SIZE 256
#define WGP_KEY_SIZE 32

/* IPv6 extension headers walked before a packet counts as unparsable. */
#define WGP_MAX_EXTENSION_HEADERS 6
/* Source ports tried before a masqueraded flow is dropped as exhausted. */
#define WGP_MASQUERADE_TRIES 16

/* ---- destinations ------------------------------------------------------ */

/* What happens to a packet whose destination has this slot. */
enum wgp_action {
	WGP_ACTION_CLEAR = 0, /* leaves as the stack routes it, unencrypted */
	WGP_ACTION_TUNNEL = 1, /* is redirected into the lane's WireGuard device */
	WGP_ACTION_DROP = 2, /* must be encrypted and cannot be */
	WGP_ACTION_STACK = 3, /* local: the stack delivers it */
	WGP_ACTION_DRAINING = 4, /* leaves in clear, the peer is going away */
};

/* Fixed slots; peers' slots begin at WGP_SLOT_FIRST_PEER. */
enum wgp_slot {
	WGP_SLOT_OUTSIDE = 0, /* outside every pool */
	WGP_SLOT_POOL = 1, /* inside a pool, no route */
	WGP_SLOT_LOCAL = 2, /* a pod of this node */
	WGP_SLOT_FIRST_PEER = 3,
};

/* One WireGuard device that can carry a destination's packets. */
struct wgp_lane {
	__u32 ifindex; /* of the WireGuard device */
	__u32 pad;
};

/*
 * Map "destinations": array by slot number, mapped into the agent.
 * `word` is generation << 8 | action and is written by one atomic store; lanes
 * are written before it.
 */
struct wgp_destination {
	__u64 word;
	__u8 family; /* 4 or 6; 0 for the fixed slots */
	__u8 lane_count;
	__u8 pad[6];
	struct wgp_lane lanes[WGP_MAX_LANES];
};
_Static_assert(sizeof(struct wgp_destination) == 80, "destination");

#define WGP_WORD_ACTION_BITS 8
#define WGP_WORD_ACTION_MASK 0xff

/*
 * Map "peers": array by slot number. Read by people and by the next agent,
 * never by the programs: who owns a destination slot.
 */
struct wgp_peer {
	__u8 node[WGP_NODE_NAME_SIZE]; /* UTF-8, zero-terminated; empty: slot free */
	__u8 public_key[WGP_KEY_SIZE]; /* all zero: the node has no WireGuard */
	__u8 family; /* 4 or 6 */
	__u8 pad[7];
};
_Static_assert(sizeof(struct wgp_peer) == 296, "peer");

/* ---- routes ------------------------------------------------------------ */

/* Maps "route_prefixes4/6": LPM tries; prefix_length in bits, then the prefix. */
struct wgp_prefix4 {
	__u32 prefix_length;
	__be32 address;
};
struct wgp_prefix6 {
	__u32 prefix_length;
	__u8 address[16];
};
_Static_assert(sizeof(struct wgp_prefix4) == 8, "prefix4");
_Static_assert(sizeof(struct wgp_prefix6) == 20, "prefix6");

/* Maps "route_addresses4/6": hashes of single addresses, looked up before the tries. */
struct wgp_address4 {
	__be32 address;
};
struct wgp_address6 {
	__u8 address[16];
};

/* Value of every route: a slot of "destinations", nothing else. */
struct wgp_route {
	__u32 slot;
};

/* ---- addresses of this node -------------------------------------------- */

enum wgp_local_kind {
	WGP_LOCAL_NONE = 0,
	WGP_LOCAL_POD = 1, /* a pod; ifindex is its host-side device, 0 unknown */
	WGP_LOCAL_HOST = 2, /* an address of the node itself */
	WGP_LOCAL_TUNNEL = 3, /* the WireGuard device's address */
};

/* Value of maps "locals4/6": hashes by address. */
struct wgp_local {
	__u32 ifindex;
	__u8 kind;
	__u8 pad[3];
};
_Static_assert(sizeof(struct wgp_local) == 8, "local");

/* Value of maps "endpoints4/6": hashes by the outer address of a known peer. */
struct wgp_endpoint {
	__u32 slot;
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct wgp_endpoint) == 8, "endpoint");

/* ---- configuration ----------------------------------------------------- */

enum wgp_config_flag {
	WGP_CONFIG_ENABLED4 = 1 << 0,
	WGP_CONFIG_ENABLED6 = 1 << 1,
	WGP_CONFIG_DIRECT = 1 << 2, /* from_pod redirects; else to_uplink steers */
};

/* Map "config": one entry, written whole; each change raises `generation`. */
struct wgp_config {
	__u32 generation;
	__u32 flags;
	__u32 mark; /* WireGuard's firewall mark */
	__u32 ifindex4; /* WireGuard device for IPv4, 0 none */
	__u32 ifindex6;
	__u16 port4; /* WireGuard's listening ports */
	__u16 port6;
	__u16 port_min; /* range of masquerade source ports, both inclusive */
	__u16 port_max;
	__be32 tunnel4; /* the WireGuard device's address, 0 none */
	__u8 tunnel6[16]; /* all zero: none */
};
_Static_assert(sizeof(struct wgp_config) == 48, "config");

/* Constants of a program, set before it is loaded (.rodata). */
struct wgp_constants {
	__u32 link_header_length; /* 14 on Ethernet, 0 on L3 devices */
	__u32 coarse_clock; /* the kernel has bpf_ktime_get_coarse_ns */
};

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
};

struct wgp_flow {
	__u64 packets;
	__u64 bytes; /* of the network layer: IP header and up */
	__u64 first_ns; /* CLOCK_MONOTONIC */
	__u64 last_ns;
	__u32 slot; /* of the destination */
	__u32 generation; /* of that slot when it was looked up */
	__u32 config_generation;
	__u8 flags; /* enum wgp_flow_flag */
	__u8 hook; /* enum wgp_hook: where it was counted first */
	__u8 tcp_flags; /* all TCP flags seen, or'ed */
	__u8 lane;
	__u64 nat; /* reserved: the masquerade of this flow */
	__u32 reason; /* reserved: enum wgp_reason of its last drop */
	__u32 pad;
};
_Static_assert(sizeof(struct wgp_flow) == 64, "flow");

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

/* ---- counters ---------------------------------------------------------- */

/* Where a packet was seen. */
#define WGP_HOOKS(X)                                                                               \
	X(FROM_POD, from_pod, "ingress of a pod's device")                                         \
	X(TO_UPLINK, to_uplink, "egress of an uplink")                                             \
	X(FROM_UPLINK, from_uplink, "ingress of an uplink")                                        \
	X(TO_WIREGUARD, to_wireguard, "egress of a WireGuard device")                              \
	X(FROM_WIREGUARD, from_wireguard, "ingress of a WireGuard device")

enum wgp_hook {
#define X(upper, lower, text) WGP_HOOK_##upper,
	WGP_HOOKS(X)
#undef X
		WGP_HOOK_COUNT,
};

/*
 * Why a packet was dropped or how it went: the only list of them. Those from
 * WGP_REASON_FIRST_DROP on are drops.
 */
#define WGP_REASONS(X)                                                                             \
	X(NONE, "none", "not counted")                                                             \
	X(TUNNELLED, "tunnelled", "redirected into WireGuard")                                     \
	X(DECRYPTED, "decrypted", "came out of WireGuard")                                         \
	X(CLEAR, "clear", "left for a pod of another node in clear")                               \
	X(MASQUERADED, "masqueraded", "source rewritten to the WireGuard device's address")        \
	X(UNMASQUERADED, "unmasqueraded", "destination restored to the host's own address")        \
	X(FLOW_TABLE_FULL, "flow_table_full", "a new flow was decided but not remembered")         \
	X(UNPARSABLE, "unparsable", "header malformed or too deep; left to the stack")             \
	X(DROP_NO_TUNNEL, "drop_no_tunnel", "must be encrypted and the peer is not ready")         \
	X(DROP_UNKNOWN_ENDPOINT, "drop_unknown_endpoint", "WireGuard packet from no known node")   \
	X(DROP_MASQUERADE_EXHAUSTED, "drop_masquerade_exhausted", "no free source port")           \
	X(DROP_MASQUERADE_FULL, "drop_masquerade_full", "masquerade table is full")                \
	X(DROP_MASQUERADE_NO_ADDRESS, "drop_masquerade_no_address", "device has no address yet")   \
	X(DROP_MASQUERADE_FRAGMENT, "drop_masquerade_fragment", "later fragment of the host's")    \
	X(DROP_REWRITE_FAILED, "drop_rewrite_failed", "packet could not be rewritten")             \
	X(DROP_NOT_HERE, "drop_not_here", "came out of WireGuard for a pod that is not here")

enum wgp_reason {
#define X(upper, name, text) WGP_REASON_##upper,
	WGP_REASONS(X)
#undef X
		WGP_REASON_COUNT,
	WGP_REASON_FIRST_DROP = WGP_REASON_DROP_NO_TUNNEL,
};

/* Map "counters": per-CPU array by reason * WGP_HOOK_COUNT + hook. */
struct wgp_counter {
	__u64 packets;
	__u64 bytes;
};

#define WGP_COUNTER_SLOTS (WGP_REASON_COUNT * WGP_HOOK_COUNT)

#pragma GCC diagnostic pop

#endif /* WGPLANE_ABI_H */
