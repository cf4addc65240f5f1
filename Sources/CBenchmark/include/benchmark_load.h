/* SPDX-License-Identifier: Apache-2.0 */
/* The inner loops of the benchmark's senders, so that what they cost themselves is little and steady. */
#ifndef WGPLANE_BENCHMARK_LOAD_H
#define WGPLANE_BENCHMARK_LOAD_H

#include <stddef.h>
#include <stdint.h>
#include "../../../bpf/bench/bench_abi.h"

#pragma clang assume_nonnull begin

/* What has been done: nanoseconds of CLOCK_MONOTONIC and how much; `error`: an errno, 0 none. */
struct wgb_result {
	uint64_t nanoseconds;
	uint64_t count;
	int error;
};

/* Lets the calling thread run on one processor alone. Returns an errno or 0. */
int wgb_pin(int processor);

/* Nanoseconds that the calling thread has run, in user mode and in the kernel. */
uint64_t wgb_thread_time(void);

/*
 * A UDP socket; `segment`: UDP_SEGMENT, the payload of each datagram of a large buffer, 0 none. Negative: -errno.
 */
int wgb_udp_socket(int is_ipv6, uint16_t segment);

/* A UDP socket of IPv4 at WGP_BENCH_PORT that nobody is to read, with the least of buffers. Negative: -errno. */
int wgb_udp_drain(void);

/*
 * TCP without delays, port WGP_BENCH_PORT; `address`: 4 or 16 bytes. Negative: -errno. Accepting and connecting wait
 * for ten seconds at most.
 */
int wgb_tcp_listen(int is_ipv6);
int wgb_tcp_accept(int listener);
int wgb_tcp_connect(int is_ipv6, const uint8_t *address);

/*
 * Sends `count` buffers of `size` bytes to WGP_BENCH_PORT of `targets` addresses in turn, 64 a call.
 * `addresses`: 4 or 16 bytes each, in network byte order. `nanoseconds`: when to end at the latest, 0 never.
 */
struct wgb_result wgb_udp_send(int socket, int is_ipv6, const uint8_t *addresses, size_t targets,
			       uint32_t size, uint64_t count, uint64_t nanoseconds);

/* Opens a TUN device that is there, with GSO (IFF_VNET_HDR). Negative: -errno. */
int wgb_tun_open(const char *name);

/*
 * Lets a TUN device receive an IP packet `count` times. `segment`: it is UDP GSO of segments with that payload,
 * 0 none; `transport_offset`: of its UDP header.
 */
struct wgb_result wgb_tun_receive(int tun, const uint8_t *packet, size_t size, uint16_t segment,
				  uint16_t transport_offset, uint64_t count);

/* Writes `size` bytes at a time into a connected TCP socket until `nanoseconds` are over; counts bytes. */
struct wgb_result wgb_stream_send(int socket, uint32_t size, uint64_t nanoseconds);

/* Reads until the other side ends; counts bytes, and the time from the first to the last of them. */
struct wgb_result wgb_stream_receive(int socket);

/* Sends a byte and waits for one, `count` times; `times`: nanoseconds of each. */
struct wgb_result wgb_ping(int socket, uint64_t count, uint64_t *times);

/* Answers each byte with one until the other side ends. */
struct wgb_result wgb_pong(int socket);

#pragma clang assume_nonnull end

#endif
