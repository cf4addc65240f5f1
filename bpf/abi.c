/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#include "wgplane_names.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const char *const reason_names[] = {
#define X(upper, name, text) name,
	WGP_REASONS(X)
#undef X
};

static const char *const reason_texts[] = {
#define X(upper, name, text) text,
	WGP_REASONS(X)
#undef X
};

static const char *const hook_names[] = {
#define X(upper, lower, text) #lower,
	WGP_HOOKS(X)
#undef X
};

static const char *const hook_texts[] = {
#define X(upper, lower, text) text,
	WGP_HOOKS(X)
#undef X
};

const char *wgp_reason_name(__u32 reason)
{
	return reason < COUNT(reason_names) ? reason_names[reason] : "";
}

const char *wgp_reason_text(__u32 reason)
{
	return reason < COUNT(reason_texts) ? reason_texts[reason] : "";
}

const char *wgp_hook_name(__u32 hook)
{
	return hook < COUNT(hook_names) ? hook_names[hook] : "";
}

const char *wgp_hook_text(__u32 hook)
{
	return hook < COUNT(hook_texts) ? hook_texts[hook] : "";
}

void wgp_store_release(__u64 *target, __u64 value)
{
	__atomic_store_n(target, value, __ATOMIC_RELEASE);
}

__u64 wgp_load_acquire(const __u64 *source)
{
	return __atomic_load_n(source, __ATOMIC_ACQUIRE);
}
