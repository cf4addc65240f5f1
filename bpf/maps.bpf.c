// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Attached nowhere: loading it makes and pins the maps, before the programs that share them are
 * loaded beside one another.
 */
#include "lib/maps.h"

SEC("tc")
int maps(struct __sk_buff *skb __attribute__((unused)))
{
	return WGP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
