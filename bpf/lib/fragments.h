/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where the later fragments of a reply to the masquerade go: they have no ports, so
 * the first one leaves a note. One that comes before it is dropped and counted.
 */
#ifndef WGPLANE_LIB_FRAGMENTS_H
#define WGPLANE_LIB_FRAGMENTS_H

#include "lookup.h"

static __always_inline void wgp_fragment_key4(struct wgp_fragment_key4 *key,
					      const struct wgp_packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->source = p->source.v4;
	key->destination = p->destination.v4;
	key->identification = p->identification;
	key->protocol = p->protocol;
}

/* A later fragment's next header is the first's too (RFC 8200, 4.5), unless there are
 * extensions between: so the protocol is no part of IPv6's key. */
static __always_inline void wgp_fragment_key6(struct wgp_fragment_key6 *key,
					      const struct wgp_packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->source, p->source.bytes, 16);
	__builtin_memcpy(key->destination, p->destination.bytes, 16);
	key->identification = p->identification;
}

/* The first fragment of a datagram goes to `address`; its key is as it arrived. */
static __always_inline void wgp_fragment_note(const struct wgp_packet *p,
					      const union wgp_address *address)
{
	struct wgp_fragment_value value = {.time_ns = wgp_now()};

	__builtin_memcpy(value.address, address->bytes, 16);
	if (p->family == 4) {
		struct wgp_fragment_key4 key;

		wgp_fragment_key4(&key, p);
		bpf_map_update_elem(&fragments4, &key, &value, BPF_ANY);
	} else {
		struct wgp_fragment_key6 key;

		wgp_fragment_key6(&key, p);
		bpf_map_update_elem(&fragments6, &key, &value, BPF_ANY);
	}
}

/* Reassembly gives up after half a minute; a note is no older (RFC 791 says 15 s, Linux 30). */
#define WGP_FRAGMENT_NS 30000000000ull

static __always_inline int wgp_fragment_find(const struct wgp_packet *p, union wgp_address *address)
{
	struct wgp_fragment_value *value;

	if (p->family == 4) {
		struct wgp_fragment_key4 key;

		wgp_fragment_key4(&key, p);
		value = bpf_map_lookup_elem(&fragments4, &key);
	} else {
		struct wgp_fragment_key6 key;

		wgp_fragment_key6(&key, p);
		value = bpf_map_lookup_elem(&fragments6, &key);
	}
	if (!value || wgp_now() - value->time_ns > WGP_FRAGMENT_NS)
		return 0;
	__builtin_memcpy(address->bytes, value->address, 16);
	return 1;
}

#endif
