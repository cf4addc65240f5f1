// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* For kernels that cannot ask conntrack, or have not loaded it. */
#define WGP_NO_CONNTRACK
#include "from_pod.bpf.c"
