// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "benchmark_load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/udp.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64

/* Since Linux 6.2. */
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

static uint64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

int wgb_pin(int processor)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(processor, &set);
	return sched_setaffinity(0, sizeof(set), &set) ? errno : 0;
}

uint64_t wgb_thread_time(void)
{
	return now(CLOCK_THREAD_CPUTIME_ID);
}

int wgb_udp_socket(int is_ipv6, uint16_t segment)
{
	int fd = socket(is_ipv6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int value = segment;
	int buffer = 16 << 20;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof(buffer));
	if (segment && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &value, sizeof(value))) {
		int error = errno;

		close(fd);
		return -error;
	}
	return fd;
}

static void make_quick(int fd)
{
	struct timeval limit = {.tv_sec = 10};
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

static socklen_t endpoint(struct sockaddr_storage *to, int is_ipv6, const uint8_t *address)
{
	memset(to, 0, sizeof(*to));
	if (is_ipv6) {
		struct sockaddr_in6 *full = (struct sockaddr_in6 *)to;

		full->sin6_family = AF_INET6;
		full->sin6_port = htons(WGP_BENCH_PORT);
		if (address)
			memcpy(&full->sin6_addr, address, 16);
		return sizeof(*full);
	} else {
		struct sockaddr_in *full = (struct sockaddr_in *)to;

		full->sin_family = AF_INET;
		full->sin_port = htons(WGP_BENCH_PORT);
		if (address)
			memcpy(&full->sin_addr, address, 4);
		return sizeof(*full);
	}
}

int wgb_udp_drain(void)
{
	struct sockaddr_storage own;
	socklen_t length = endpoint(&own, 0, NULL);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), least = 1, error;

	if (fd < 0)
		return -errno;
	if (!setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &least, sizeof(least)) &&
	    !bind(fd, (struct sockaddr *)&own, length))
		return fd;
	error = errno;
	close(fd);
	return -error;
}

static int stream(int is_ipv6)
{
	int fd = socket(is_ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0)
		make_quick(fd);
	return fd < 0 ? -errno : fd;
}

int wgb_tcp_listen(int is_ipv6)
{
	struct sockaddr_storage own;
	socklen_t length = endpoint(&own, is_ipv6, NULL);
	int fd = stream(is_ipv6), on = 1, error;

	if (fd < 0)
		return fd;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (!bind(fd, (struct sockaddr *)&own, length) && !listen(fd, 8))
		return fd;
	error = errno;
	close(fd);
	return -error;
}

int wgb_tcp_accept(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

	if (fd >= 0)
		make_quick(fd);
	return fd < 0 ? -errno : fd;
}

int wgb_tcp_connect(int is_ipv6, const uint8_t *address)
{
	struct sockaddr_storage to;
	socklen_t length = endpoint(&to, is_ipv6, address);
	int fd = stream(is_ipv6), error;

	if (fd < 0 || !connect(fd, (struct sockaddr *)&to, length))
		return fd;
	error = errno;
	close(fd);
	return -error;
}

struct wgb_result wgb_udp_send(int socket, int is_ipv6, const uint8_t *addresses, size_t targets,
			       uint32_t size, uint64_t count, uint64_t nanoseconds)
{
	struct wgb_result result = {0};
	struct mmsghdr messages[BATCH];
	struct sockaddr_storage *to = calloc(targets, sizeof(*to));
	uint8_t *payload = calloc(1, size ? size : 1);
	struct iovec vector = {.iov_base = payload, .iov_len = size};
	size_t target = 0;
	uint64_t start;

	if (!to || !payload) {
		result.error = ENOMEM;
		goto out;
	}
	for (size_t i = 0; i < targets; i++)
		endpoint(&to[i], is_ipv6, addresses + (is_ipv6 ? 16 : 4) * i);
	memset(messages, 0, sizeof(messages));
	start = now(CLOCK_MONOTONIC);
	while (result.count < count) {
		unsigned batch =
			count - result.count < BATCH ? (unsigned)(count - result.count) : BATCH;
		unsigned done = 0;

		for (unsigned i = 0; i < batch; i++) {
			struct msghdr *message = &messages[i].msg_hdr;

			message->msg_name = &to[target];
			message->msg_namelen =
				is_ipv6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
			message->msg_iov = &vector;
			message->msg_iovlen = 1;
			if (++target == targets)
				target = 0;
		}
		while (done < batch) {
			int sent = sendmmsg(socket, messages + done, batch - done, 0);

			if (sent < 0 && errno != EINTR) {
				result.error = errno;
				goto out;
			}
			if (sent > 0)
				done += (unsigned)sent;
		}
		result.count += batch;
		if (nanoseconds && now(CLOCK_MONOTONIC) - start >= nanoseconds)
			break;
	}
	result.nanoseconds = now(CLOCK_MONOTONIC) - start;
out:
	free(to);
	free(payload);
	return result;
}

int wgb_tun_open(const char *name)
{
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
	int error;

	if (fd < 0)
		return -errno;
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(fd, TUNSETIFF, &request)) {
		error = errno;
		close(fd);
		return -error;
	}
	return fd;
}

struct wgb_result wgb_tun_receive(int tun, const uint8_t *packet, size_t size, uint16_t segment,
				  uint16_t transport_offset, uint64_t count)
{
	struct wgb_result result = {0};
	struct virtio_net_hdr header = {0};
	struct iovec vectors[2] = {
		{.iov_base = &header, .iov_len = sizeof(header)},
		{.iov_base = (void *)packet, .iov_len = size},
	};
	uint64_t start;

	if (segment) {
		header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		header.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4;
		header.gso_size = segment;
		header.hdr_len = transport_offset + 8;
		header.csum_start = transport_offset;
		header.csum_offset = 6;
	}
	start = now(CLOCK_MONOTONIC);
	while (result.count < count) {
		if (writev(tun, vectors, 2) < 0) {
			if (errno == EINTR)
				continue;
			result.error = errno;
			return result;
		}
		result.count++;
	}
	result.nanoseconds = now(CLOCK_MONOTONIC) - start;
	return result;
}

struct wgb_result wgb_stream_send(int socket, uint32_t size, uint64_t nanoseconds)
{
	struct wgb_result result = {0};
	uint8_t *buffer = calloc(1, size);
	uint64_t start = now(CLOCK_MONOTONIC);

	if (!buffer) {
		result.error = ENOMEM;
		return result;
	}
	do {
		ssize_t sent = send(socket, buffer, size, MSG_NOSIGNAL);

		if (sent < 0 && errno != EINTR) {
			result.error = errno;
			break;
		}
		if (sent > 0)
			result.count += (uint64_t)sent;
		result.nanoseconds = now(CLOCK_MONOTONIC) - start;
	} while (result.nanoseconds < nanoseconds);
	free(buffer);
	return result;
}

struct wgb_result wgb_stream_receive(int socket)
{
	struct wgb_result result = {0};
	size_t size = 1 << 20;
	uint8_t *buffer = malloc(size);
	uint64_t first = 0;

	if (!buffer) {
		result.error = ENOMEM;
		return result;
	}
	for (;;) {
		ssize_t got = recv(socket, buffer, size, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			result.error = got < 0 ? errno : 0;
			break;
		}
		if (!first)
			first = now(CLOCK_MONOTONIC);
		else
			result.count += (uint64_t)got;
		result.nanoseconds = now(CLOCK_MONOTONIC) - first;
	}
	free(buffer);
	return result;
}

struct wgb_result wgb_ping(int socket, uint64_t count, uint64_t *times)
{
	struct wgb_result result = {0};
	uint8_t byte = 1;
	uint64_t start = now(CLOCK_MONOTONIC), last = start;

	while (result.count < count) {
		uint64_t time;

		if (send(socket, &byte, 1, MSG_NOSIGNAL) != 1 || recv(socket, &byte, 1, 0) != 1) {
			result.error = errno ? errno : EPIPE;
			break;
		}
		time = now(CLOCK_MONOTONIC);
		times[result.count++] = time - last;
		last = time;
	}
	result.nanoseconds = last - start;
	return result;
}

struct wgb_result wgb_pong(int socket)
{
	struct wgb_result result = {0};
	uint8_t byte;

	for (;;) {
		ssize_t got = recv(socket, &byte, 1, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0 || send(socket, &byte, 1, MSG_NOSIGNAL) != 1)
			break;
		result.count++;
	}
	return result;
}
