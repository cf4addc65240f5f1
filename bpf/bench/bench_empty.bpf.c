// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A yardstick: what calling a program costs. */
#include "lib/program.h"

SEC("tc")
int bench_empty(struct __sk_buff *skb)
{
	(void)skb;
	return constants.link_header_length ? WGP_PASS : WGP_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
