// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Egress of an uplink, behind to_uplink: strict mode's second lock. */
#include "lib/second_lock.h"

SEC("tc")
int guard_out(struct __sk_buff *skb)
{
	return wgp_second_lock(skb, WGP_HOOK_GUARD_OUT);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
