/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Names of hooks and reasons, and the few operations on shared memory that
 * Swift cannot express: for user space only.
 */
#ifndef WGPLANE_NAMES_H
#define WGPLANE_NAMES_H

#include "wgplane_abi.h"

#pragma clang assume_nonnull begin

/* Field name and text of a reason or hook; "" outside the range. */
const char *wgp_reason_name(__u32 reason);
const char *wgp_reason_text(__u32 reason);
const char *wgp_hook_name(__u32 hook);
const char *wgp_hook_text(__u32 hook);

/* One 64-bit store with release order: what came before it is seen before it. */
void wgp_store_release(__u64 *target, __u64 value);
__u64 wgp_load_acquire(const __u64 *source);

#pragma clang assume_nonnull end

#endif /* WGPLANE_NAMES_H */
