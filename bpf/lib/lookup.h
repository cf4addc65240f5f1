/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Look-ups that hide the two families, the clock, and the counters. */
#ifndef WGPLANE_LIB_LOOKUP_H
#define WGPLANE_LIB_LOOKUP_H

#include "parse.h"

static __always_inline __u64 wgp_now(void)
{
	return constants.coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

static __always_inline const struct wgp_config *wgp_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

/*
 * While the attachment changes, programs are there twice: those that do not work now let
 * everything pass, so that all change over with one store.
 */
static __always_inline int wgp_is_inert(const struct wgp_config *cfg)
{
	return cfg && !(cfg->flags & WGP_CONFIG_CLSACT) != !constants.clsact;
}

static __always_inline int wgp_enabled(const struct wgp_config *cfg, const struct wgp_packet *p)
{
	return cfg->flags & (p->family == 4 ? WGP_CONFIG_ENABLED4 : WGP_CONFIG_ENABLED6);
}

/* Does WireGuard listen on this port (network order), or has done until a moment ago? */
static __always_inline int wgp_is_own_port(const struct wgp_config *cfg, __u8 family, __be16 port)
{
	__u16 other = family == 4 ? cfg->other_port4 : cfg->other_port6;

	return port == bpf_htons(family == 4 ? cfg->port4 : cfg->port6) ||
	       (other && port == bpf_htons(other));
}

/* The packet is the one at hand, which the program owns, though most only read it. */
static __always_inline void wgp_count(const struct wgp_packet *packet, __u32 hook, __u32 reason)
{
	__u32 index = reason * WGP_HOOK_COUNT + hook;
	struct wgp_counter *counter = bpf_map_lookup_elem(&counters, &index);

	((struct wgp_packet *)packet)->reason = reason;
	if (counter) {
		counter->packets += packet->packets;
		counter->bytes += packet->bytes;
	}
}

static __always_inline const struct wgp_local *wgp_local(__u8 family,
							 const union wgp_address *address)
{
	if (family == 4)
		return bpf_map_lookup_elem(&locals4, &address->v4);
	return bpf_map_lookup_elem(&locals6, address->bytes);
}

static __always_inline const struct wgp_endpoint *wgp_endpoint(__u8 family,
							       const union wgp_address *address)
{
	if (family == 4)
		return bpf_map_lookup_elem(&endpoints4, &address->v4);
	return bpf_map_lookup_elem(&endpoints6, address->bytes);
}

/* The block of an address, of the length that the agent has chosen; NULL: it is in none. */
static __always_inline const struct wgp_route *wgp_block_of(__u8 family,
							    const union wgp_address *address)
{
	const struct wgp_config *cfg = wgp_config();
	__u32 bits = !cfg ? 0 : family == 4 ? cfg->block4 : cfg->block6;

	if (!bits)
		return NULL;
	if (family == 4) {
		struct wgp_prefix4 key = {.prefix_length = bits};

		key.address = address->v4 & bpf_htonl(0xffffffffu << ((32 - bits) & 31));
		return bpf_map_lookup_elem(&route_blocks4, &key);
	} else {
		struct wgp_prefix6 key = {.prefix_length = bits};
		union wgp_address masked = *address;

#pragma unroll
		for (__u32 i = 0; i < 4; i++) {
			if (bits <= i * 32)
				masked.words[i] = 0;
			else if (bits < i * 32 + 32)
				masked.words[i] &=
					bpf_htonl(0xffffffffu << ((i * 32 + 32 - bits) & 31));
		}
		__builtin_memcpy(key.address, masked.bytes, 16);
		return bpf_map_lookup_elem(&route_blocks6, &key);
	}
}

/*
 * The slot of an address: single addresses first, then blocks, which cost a third of
 * what the tries cost, then the longest prefix.
 */
static __always_inline __u32 wgp_slot_of(__u8 family, const union wgp_address *address)
{
	const struct wgp_route *route;

	if (family == 4)
		route = bpf_map_lookup_elem(&route_addresses4, &address->v4);
	else
		route = bpf_map_lookup_elem(&route_addresses6, address->bytes);
	if (!route)
		route = wgp_block_of(family, address);
	if (route)
		return route->slot;
	if (family == 4) {
		struct wgp_prefix4 key = {.prefix_length = 32, .address = address->v4};

		route = bpf_map_lookup_elem(&route_prefixes4, &key);
	} else {
		struct wgp_prefix6 key = {.prefix_length = 128};

		__builtin_memcpy(key.address, address->bytes, 16);
		route = bpf_map_lookup_elem(&route_prefixes6, &key);
	}
	return route ? route->slot : WGP_SLOT_OUTSIDE;
}

static __always_inline const struct wgp_destination *wgp_destination(__u32 slot)
{
	return bpf_map_lookup_elem(&destinations, &slot);
}

/* The slot's word in one load: generation << 8 | action. */
static __always_inline __u64 wgp_word(const struct wgp_destination *destination)
{
	return *(const volatile __u64 *)&destination->word;
}

/* Is the address one of IPv6's link-local ones? */
static __always_inline int wgp_is_link_local(const struct wgp_packet *p)
{
	return p->family == 6 && p->source.bytes[0] == 0xfe && (p->source.bytes[1] & 0xc0) == 0x80;
}

#endif
