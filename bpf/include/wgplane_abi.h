/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one place where the kernel programs and the Swift agent agree.
 *
 * Every map key, map value, limit, mark and reason is declared once, here or in the
 * two files that this one includes; the .bpf.c programs and the Swift module
 * CDataplaneABI include this very file.
 *
 * Byte order: fields of type __be16/__be32 and all IPv6 addresses hold network
 * byte order as they stand in the packet; everything else is host order.
 * Layout: fixed-width types, explicit padding, size assertions. A change
 * of any layout here raises WGP_LAYOUT_VERSION, which names the pin directory.
 * The maps masquerade4 and masquerade6 go over to an agent of another version
 * as they are: a change of their structs changes their names, too.
 */
#ifndef WGPLANE_ABI_H
#define WGPLANE_ABI_H

#include <linux/types.h>
#include "wgplane_reasons.h"
#include "wgplane_flows.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wpadded"

/* Version of everything in this file; pins live in a directory named for it. */
#define WGP_LAYOUT_VERSION 6

/* ---- marks ------------------------------------------------------------- */
/*
 * Chosen disjoint from kube-proxy (0x4000, 0x8000), Calico (0xffff0000 but for
 * the WireGuard bit, which is Felix's default), Cilium (0x0f00) and the AWS CNI (0x80).
 * A mark proves nothing to others, and pods can set them: from_pod, a pod's first
 * hook, overwrites ours before a packet goes on.
 */

/* WireGuard's own firewall mark on outer packets (the default; see config). */
#define WGP_MARK_WIREGUARD 0x20000000
/* A hook of this node has counted the packet in a flow; cleared when it leaves the node. */
#define WGP_MARK_COUNTED 0x00002000
/*
 * Beside it: the source is the node itself, to_wireguard masquerades it. The upper
 * half of such a mark is the flow's port on the far side (network order), 0 when
 * to_wireguard is to look it up.
 */
#define WGP_MARK_HOST 0x00001000
#define WGP_MARK_PORT_SHIFT 16

/* ---- limits ------------------------------------------------------------ */

#define WGP_MAX_LANES 8
#define WGP_MAX_DESTINATIONS 16384
#define WGP_MAX_ROUTE_PREFIXES 131072
#define WGP_MAX_ROUTE_BLOCKS 65536
#define WGP_MAX_ROUTE_ADDRESSES 262144
#define WGP_MAX_LOCALS 16384
#define WGP_MAX_ENDPOINTS 16384
#define WGP_MAX_FLOWS 262144
#define WGP_MAX_MASQUERADE 131072
#define WGP_MAX_INTERFACES 16384
#define WGP_MAX_ALLOWED_SOURCES 16384
#define WGP_MAX_FRAGMENTS 8192
#define WGP_MAX_EXEMPT_PORTS 16
#define WGP_MAX_GUARD_PREFIXES 65536
#define WGP_EVENTS_BYTES (256 * 1024)
#define WGP_NODE_NAME_SIZE 256
#define WGP_KEY_SIZE 32

/* IPv6 extension headers walked before a packet counts as unparsable. */
#define WGP_MAX_EXTENSION_HEADERS 6
/* Source ports tried before a masqueraded flow is dropped as exhausted. */
#define WGP_MASQUERADE_TRIES 16
/* ICMP answers of ours, per CPU in each tenth of a second. */
#define WGP_ICMP_BURST 100
/* Bytes of the offending packet that they quote: all IP options and TCP's header. */
#define WGP_ICMP_QUOTE4 80
#define WGP_ICMP_QUOTE6 128
/* A host's flow asks for its mapping anew after this many units of 2^30 ns. */
#define WGP_NAT_FRESH 10

/* ---- destinations ------------------------------------------------------ */

/* What happens to a packet whose destination has this slot. */
enum wgp_action {
	WGP_ACTION_CLEAR = 0, /* leaves as the stack routes it, unencrypted */
	WGP_ACTION_TUNNEL = 1, /* is redirected into the lane's WireGuard device */
	WGP_ACTION_DROP = 2, /* dropped: for tests; strict mode drops by the configuration's word */
	WGP_ACTION_STACK = 3, /* local: the stack delivers it */
	WGP_ACTION_DRAINING = 4, /* leaves in clear, the peer is going away */
	WGP_ACTION_EXEMPT = 5, /* leaves in clear by the operator's choice, strict or not */
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
_Static_assert(sizeof(struct wgp_lane) == 8, "lane");

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
	struct wgp_lane lanes[WGP_MAX_LANES]; /* the first is used; room for more devices */
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

/*
 * Maps "route_blocks4/6": hashes of prefixes of the one length that config names, looked
 * up before the tries. None of them has a longer prefix in the tries inside it.
 * Maps "route_addresses4/6": hashes of single addresses, looked up first of all.
 */
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
_Static_assert(sizeof(struct wgp_route) == 4, "route");

/* ---- addresses of this node -------------------------------------------- */

enum wgp_local_kind {
	WGP_LOCAL_NONE = 0,
	WGP_LOCAL_POD = 1, /* a pod; ifindex is its host-side device, 0 unknown */
	WGP_LOCAL_HOST = 2, /* an address of the node itself */
	WGP_LOCAL_TUNNEL = 3, /* the WireGuard device's address */
};

enum wgp_local_flag {
	/* Packets may be handed to the far end of the pod's veth pair at once, in the pod's namespace. */
	WGP_LOCAL_FAR_END = 1 << 0,
};

/* Value of maps "locals4/6": hashes by address. */
struct wgp_local {
	__u32 ifindex;
	__u8 kind;
	__u8 flags; /* enum wgp_local_flag */
	__u16 mtu; /* of that device, 0 unknown */
	__u8 link
		[12]; /* with WGP_LOCAL_FAR_END: what a frame begins with, both hardware addresses */
};
_Static_assert(sizeof(struct wgp_local) == 20, "local");

enum wgp_interface_flag {
	WGP_INTERFACE_CHECKED = 1 << 0, /* its pod's addresses are known: no others may send */
};

/* Map "interfaces": hash by interface index, of pods' devices. */
struct wgp_interface {
	__u32 flags;
};

/*
 * Maps "allowed_sources4/6": LPM tries of what a pod may send from beside its own
 * addresses. The interface comes first, so prefix_length is 32 more than the prefix's.
 */
struct wgp_source4 {
	__u32 prefix_length;
	__u32 ifindex;
	__be32 address;
};
struct wgp_source6 {
	__u32 prefix_length;
	__u32 ifindex;
	__u8 address[16];
};
_Static_assert(sizeof(struct wgp_source4) == 12, "source4");
_Static_assert(sizeof(struct wgp_source6) == 24, "source6");

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
	/* from_pod redirects and from_wireguard delivers; else the kernel forwards, to_uplink steers */
	WGP_CONFIG_DIRECT = 1 << 2,
	WGP_CONFIG_STRICT = 1 << 3, /* what cannot be encrypted is dropped */
	WGP_CONFIG_HOSTS = 1 << 4, /* host encryption: nodes' own traffic is promised too */
	WGP_CONFIG_SOURCES = 1 << 5, /* pods send from their own addresses only */
	WGP_CONFIG_CONNTRACK = 1 << 6, /* a flow's first packet asks conntrack */
	WGP_CONFIG_ROAMING = 1 << 7, /* a peer is behind NAT: anybody may speak WireGuard to us */
	WGP_CONFIG_CLSACT = 1 << 8, /* programs attached by clsact work; else those of tcx */
};

/* Ports whose flows between nodes stay in clear under host encryption. */
struct wgp_port_range {
	__u16 first; /* both inclusive, host order */
	__u16 last;
	__u8 protocol;
	__u8 pad[3];
};

/* Map "config": one entry, written whole; each change raises `generation`. */
struct wgp_config {
	__u32 generation;
	__u32 flags;
	__u32 mark; /* WireGuard's firewall mark */
	__u32 old_mark; /* the one before, while it changes; else 0 */
	__u32 ifindex4; /* WireGuard device for IPv4, 0 none */
	__u32 ifindex6;
	__u16 port4; /* WireGuard's listening ports */
	__u16 port6;
	/*
	 * While the port changes, the one before, or the one to come; else 0. What comes to the one
	 * of the two that nobody listens on is led to the other.
	 */
	__u16 other_port4;
	__u16 other_port6;
	__u16 port_min; /* range of masquerade source ports, both inclusive */
	__u16 port_max;
	__u16 mtu4; /* of the WireGuard devices; 0: sizes are not looked at */
	__u16 mtu6;
	__u16 mss4; /* most that a TCP SYN may offer; 0: it is left alone */
	__u16 mss6;
	__u16 vxlan_ports[2]; /* UDP ports of overlays, 0 none */
	__be32 tunnel4; /* the WireGuard device's address, 0 none */
	__u8 tunnel6[16]; /* all zero: none */
	__u16 exempt_count;
	__u8 block4; /* length of the prefixes in "route_blocks4/6", 0: they are empty */
	__u8 block6;
	struct wgp_port_range exempt[WGP_MAX_EXEMPT_PORTS];
};
_Static_assert(sizeof(struct wgp_config) == 200, "config");

/* Constants of a program, set before it is loaded (.rodata). */
struct wgp_constants {
	__u32 link_header_length; /* 14 on Ethernet, 0 on L3 devices */
	__u32 coarse_clock; /* the kernel has bpf_ktime_get_coarse_ns */
	__u32 clsact; /* attached as a filter of clsact, not by tcx */
	__u32 uncounted; /* flows are steered and not counted: for measurements alone */
	__u16 vxlan_ports[2]; /* UDP ports of overlays, 0 none: for the guard */
};
_Static_assert(sizeof(struct wgp_constants) == 20, "constants");

/* ---- second lock of strict mode ---------------------------------------- */

enum wgp_guard {
	WGP_GUARD_POOL = 1, /* never in clear from or to another such */
	WGP_GUARD_EXEMPT = 2, /* pods of a node that the operator has exempted */
};

/* Value of maps "guard_prefixes4/6": LPM tries, read by the guard alone. */
struct wgp_guard_prefix {
	__u32 kind; /* enum wgp_guard */
};

#pragma GCC diagnostic pop

#endif /* WGPLANE_ABI_H */
