/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the benchmark's programs and its runner share. */
#ifndef WGPLANE_BENCH_ABI_H
#define WGPLANE_BENCH_ABI_H

#include <linux/types.h>

/* Destination port of a measurement's packets. */
#define WGP_BENCH_PORT 9999

/* Value of the map "sink", per CPU. */
struct wgp_bench_count {
	__u64 packets; /* segments when GSO */
	__u64 bytes; /* from the IP header on */
};

#endif
