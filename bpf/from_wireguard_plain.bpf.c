// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* For kernels that cannot ask conntrack: some before 5.16 refuse a program that might. */
#define WGP_NO_CONNTRACK
#include "from_wireguard.bpf.c"
