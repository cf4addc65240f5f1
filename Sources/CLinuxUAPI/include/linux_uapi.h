/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Swift's Glibc overlay lacks of the kernel's interface: UAPI headers, and
 * the few macros and variadic calls that do not import.
 */
#ifndef WGPLANE_LINUX_UAPI_H
#define WGPLANE_LINUX_UAPI_H

#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <linux/bpf.h>
#include <linux/fib_rules.h>
#include <linux/genetlink.h>
#include <linux/if_addr.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nf_tables_compat.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <linux/wireguard.h>

#pragma clang assume_nonnull begin

/* The IFF_ flag, which <net/if.h> and <linux/if.h> both claim. */
enum { WGP_IFF_UP = 1 << 0 };

/* Of <linux/netfilter.h>, which brings the kernel's own in_addr along. */
enum wgp_netfilter_family {
	WGP_NFPROTO_INET = 1,
	WGP_NFPROTO_IPV4 = 2,
	WGP_NFPROTO_ARP = 3,
	WGP_NFPROTO_NETDEV = 5,
	WGP_NFPROTO_BRIDGE = 7,
	WGP_NFPROTO_IPV6 = 10,
};
enum wgp_netfilter_hook {
	WGP_NF_INET_PRE_ROUTING = 0,
	WGP_NF_INET_FORWARD = 2,
	WGP_NF_INET_POST_ROUTING = 4,
	WGP_NF_INET_INGRESS = 5,
};

/* Constants that are casts or shifts in C and so do not import. */
extern const unsigned wgp_clone_newnet, wgp_clone_newns, wgp_clone_fs;
extern const unsigned long wgp_ms_bind, wgp_ms_private, wgp_ms_rec, wgp_ms_nosuid, wgp_ms_nodev,
	wgp_ms_noexec, wgp_mnt_detach;
extern const long wgp_bpf_fs_magic;

/* Standard output line by line; the stream itself is a global that Swift 6 refuses. */
void wgp_line_buffered_output(void);

/* setns, unshare and gettid without feature-test macros. */
int wgp_setns(int descriptor, int kind);
int wgp_unshare(int kinds);
int wgp_gettid(void);
/* A file in memory alone, closed on exec. */
int wgp_memory_file(void);
/* Whether a file of at most `limit` bytes holds these; 0 where it cannot be read. */
int wgp_file_contains(const char *path, size_t limit, const void *part, size_t count);
int wgp_open(const char *path, int flags, unsigned mode);

/* Starts a program: own session, no signals blocked, descriptors as given. Returns errno or 0. */
int wgp_spawn(pid_t *pid, const char *path, char *_Nullable const *_Nonnull argv,
	      char *_Nullable const *_Nonnull envp, int in, int out, int err, int own_session);

/* Keeps of the calling thread's capabilities these (bits by number, CAP_…), and takes all others out of its bounding set
 * where it may. Call it before there are threads. Returns errno or 0; so do the next. */
int wgp_keep_capabilities(uint64_t permitted, uint64_t effective);
/* PR_SET_NO_NEW_PRIVS. */
int wgp_forbid_new_privileges(void);
/* No core files, no dumps, no tracing by others than root. */
int wgp_forbid_dumps(void);
/* Kernels before 5.11 count BPF maps as locked memory. */
void wgp_unlimit_locked_memory(void);
/* A seccomp filter for all threads: what no agent does fails with EPERM; `with_programs`: so do execve and fork. */
int wgp_forbid_system_calls(int with_programs);

/* What is asked of the launcher; sizes in bytes, host byte order. */
struct wgp_launch {
	uint32_t arguments, arguments_size, environment, environment_size, input_size, own_session,
		capture;
};
/* `status` as by waitpid, where `error` is 0. */
struct wgp_launched {
	int error, status;
	uint32_t output_size;
};
/* Forks a process that starts programs of these names (ended by NULL) for this one. Returns this one's end of the socket,
 * or -errno. Call it before there are threads. */
int wgp_start_launcher(const char *_Nullable const *_Nonnull allowed, uint64_t capabilities);

#pragma clang assume_nonnull end

#endif
