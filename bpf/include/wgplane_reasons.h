/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Hooks, and why a packet was dropped or how it went: the only lists of them. */
#ifndef WGPLANE_REASONS_H
#define WGPLANE_REASONS_H

#include <linux/types.h>

/* Where a packet was seen. */
#define WGP_HOOKS(X)                                                                               \
	X(FROM_POD, from_pod, "ingress of a pod's device")                                         \
	X(TO_UPLINK, to_uplink, "egress of an uplink")                                             \
	X(FROM_UPLINK, from_uplink, "ingress of an uplink")                                        \
	X(TO_WIREGUARD, to_wireguard, "egress of a WireGuard device")                              \
	X(FROM_WIREGUARD, from_wireguard, "ingress of a WireGuard device")                         \
	X(GUARD_OUT, guard_out, "egress of an uplink, strict mode's second lock")                  \
	X(GUARD_IN, guard_in, "ingress of an uplink, strict mode's second lock")

enum wgp_hook {
#define X(upper, lower, text) WGP_HOOK_##upper,
	WGP_HOOKS(X)
#undef X
		WGP_HOOK_COUNT,
};

/* Those from WGP_REASON_FIRST_DROP on are drops. */
#define WGP_REASONS(X)                                                                             \
	X(NONE, "none", "not counted")                                                             \
	X(TUNNELLED, "tunnelled", "redirected into WireGuard")                                     \
	X(DECRYPTED, "decrypted", "came out of WireGuard")                                         \
	X(CLEAR, "clear", "left in clear though it is to be encrypted: a leak")                    \
	X(CLEAR_EXEMPT, "clear_exempt", "left in clear by the operator's choice")                  \
	X(CLEAR_FOREIGN, "clear_foreign", "left for a pod in clear, from outside the cluster")     \
	X(CLEAR_ENCAPSULATED, "clear_encapsulated",                                                \
	  "a pod's packet left in clear in an overlay's")                                          \
	X(CLEAR_ARRIVED, "clear_arrived", "a pod's packet came from another node in clear")        \
	X(MASQUERADED, "masqueraded", "source rewritten to the WireGuard device's address")        \
	X(UNMASQUERADED, "unmasqueraded", "destination restored to the host's own address")        \
	X(MSS_CLAMPED, "mss_clamped", "a TCP SYN's segment size was lowered")                      \
	X(OVERSIZED, "oversized", "larger than the tunnel's MTU; WireGuard's packet is split")     \
	X(FLOW_TABLE_FULL, "flow_table_full", "a new flow was decided but not remembered")         \
	X(EVENT_LOST, "event_lost", "nobody read the events fast enough")                          \
	X(UNPARSABLE, "unparsable", "header malformed or too deep; left to the stack")             \
	X(DROP_NO_TUNNEL, "drop_no_tunnel", "its slot says drop, which tests alone set")           \
	X(DROP_CLEAR, "drop_clear", "strict mode: would have left in clear")                       \
	X(DROP_CLEAR_ARRIVED, "drop_clear_arrived", "strict mode: a pod's packet came in clear")   \
	X(DROP_ENCAPSULATED, "drop_encapsulated", "strict mode: a pod's packet in an overlay's")   \
	X(DROP_UNPARSABLE, "drop_unparsable", "strict mode: nobody can say what it is")            \
	X(DROP_SPOOFED, "drop_spoofed", "a pod sent from an address that is not its own")          \
	X(DROP_TOO_BIG, "drop_too_big", "larger than the tunnel's MTU; the sender is told")        \
	X(DROP_TOO_BIG_QUIET, "drop_too_big_quiet", "the same, and the sender could not be told")  \
	X(DROP_UNKNOWN_ENDPOINT, "drop_unknown_endpoint", "WireGuard packet from no known node")   \
	X(DROP_MASQUERADE_EXHAUSTED, "drop_masquerade_exhausted", "no free source port")           \
	X(DROP_MASQUERADE_FULL, "drop_masquerade_full", "masquerade table is full")                \
	X(DROP_MASQUERADE_NO_ADDRESS, "drop_masquerade_no_address", "device has no address yet")   \
	X(DROP_FRAGMENT_EARLY, "drop_fragment_early", "a fragment came before its first")          \
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

#endif /* WGPLANE_REASONS_H */
