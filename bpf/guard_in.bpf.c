// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Ingress of an uplink, behind from_uplink: strict mode's second lock. */
#include "lib/second_lock.h"

SEC("tc")
int guard_in(struct __sk_buff *skb)
{
	return wgp_second_lock(skb, WGP_HOOK_GUARD_IN);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
