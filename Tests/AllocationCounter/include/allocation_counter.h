/* SPDX-License-Identifier: Apache-2.0 */
/* Counts the calling thread's allocations: what shows that a change costs little, without a clock. */
#ifndef WGPLANE_ALLOCATION_COUNTER_H
#define WGPLANE_ALLOCATION_COUNTER_H

#include <stdint.h>

/* malloc, calloc, realloc and aligned ones of the calling thread so far; always 0 with a sanitizer. */
uint64_t wgt_allocations(void);

#endif
