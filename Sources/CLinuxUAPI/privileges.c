/* SPDX-License-Identifier: Apache-2.0 */
/* Giving up what is not needed: capabilities, system calls, dumps. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
#include "linux_uapi.h"

int wgp_keep_capabilities(uint64_t permitted, uint64_t effective)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{0}};
	uint64_t held;
	unsigned i;

	if (syscall(SYS_capget, &header, data))
		return errno;
	/* Never more than there is: a container may have less. */
	held = (uint64_t)data[1].permitted << 32 | data[0].permitted;
	permitted &= held;
	effective &= permitted;
	/* Where CAP_SETPCAP is there: a program that is started gets no others back. */
	for (i = 0; i <= 63; i++)
		if (!(permitted >> i & 1))
			prctl(PR_CAPBSET_DROP, i, 0, 0, 0);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (i = 0; i < 2; i++) {
		data[i].permitted = (uint32_t)(permitted >> 32 * i);
		data[i].effective = (uint32_t)(effective >> 32 * i);
		data[i].inheritable = 0;
	}
	return syscall(SYS_capset, &header, data) ? errno : 0;
}

int wgp_forbid_new_privileges(void)
{
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? errno : 0;
}

int wgp_forbid_dumps(void)
{
	struct rlimit none = {0, 0};
	int filter = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);

	/* Programs that it starts can be dumped again, and what a dump is piped to heeds no limit: then it is empty. */
	if (filter >= 0) {
		(void)!write(filter, "0", 1);
		close(filter);
	}
	if (setrlimit(RLIMIT_CORE, &none))
		return errno;
	return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? errno : 0;
}

void wgp_unlimit_locked_memory(void)
{
	struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};

	setrlimit(RLIMIT_MEMLOCK, &all);
}

/* What no agent does, by groups: other processes, mounts and namespaces, the machine, keys, kernels' less tried corners,
 * other identities. A number that this architecture has not is left out. */
static const int forbidden[] = {
	SYS_ptrace,
	SYS_process_vm_readv,
	SYS_process_vm_writev,
	SYS_kcmp,
#ifdef SYS_pidfd_getfd
	SYS_pidfd_getfd,
#endif
#ifdef SYS_process_madvise
	SYS_process_madvise,
#endif
#ifdef SYS_process_mrelease
	SYS_process_mrelease,
#endif
#ifdef SYS_pidfd_send_signal
	SYS_pidfd_send_signal,
#endif
	SYS_mount,
	SYS_umount2,
	SYS_pivot_root,
	SYS_chroot,
	SYS_setns,
	SYS_unshare,
#ifdef SYS_move_mount
	SYS_move_mount,
	SYS_open_tree,
	SYS_fsopen,
	SYS_fsconfig,
	SYS_fsmount,
	SYS_fspick,
#endif
#ifdef SYS_mount_setattr
	SYS_mount_setattr,
#endif
#ifdef SYS_open_tree_attr
	SYS_open_tree_attr,
#endif
	SYS_open_by_handle_at,
	SYS_name_to_handle_at,
	SYS_fanotify_init,
	SYS_fanotify_mark,
	SYS_quotactl,
#ifdef SYS_quotactl_fd
	SYS_quotactl_fd,
#endif
	SYS_acct,
	SYS_swapon,
	SYS_swapoff,
	SYS_init_module,
	SYS_finit_module,
	SYS_delete_module,
	SYS_kexec_load,
	SYS_reboot,
	SYS_settimeofday,
	SYS_clock_settime,
	SYS_clock_adjtime,
	SYS_adjtimex,
	SYS_sethostname,
	SYS_setdomainname,
	SYS_syslog,
	SYS_vhangup,
	SYS_personality,
#ifdef SYS_kexec_file_load
	SYS_kexec_file_load,
#endif
#ifdef SYS_iopl
	SYS_iopl,
	SYS_ioperm,
	SYS_modify_ldt,
#endif
	SYS_keyctl,
	SYS_add_key,
	SYS_request_key,
	SYS_perf_event_open,
	SYS_userfaultfd,
	SYS_migrate_pages,
	SYS_move_pages,
	SYS_mbind,
	SYS_set_mempolicy,
#ifdef SYS_set_mempolicy_home_node
	SYS_set_mempolicy_home_node,
#endif
#ifdef SYS_lsm_set_self_attr
	SYS_lsm_set_self_attr,
#endif
	SYS_lookup_dcookie,
#ifdef SYS_io_uring_setup
	SYS_io_uring_setup,
	SYS_io_uring_enter,
	SYS_io_uring_register,
#endif
	SYS_setuid,
	SYS_setgid,
	SYS_setreuid,
	SYS_setregid,
	SYS_setresuid,
	SYS_setresgid,
	SYS_setgroups,
	SYS_setfsuid,
	SYS_setfsgid,
	SYS_capset,
	SYS_mknodat,
#ifdef SYS_mknod
	SYS_mknod,
#endif
};

static const int programs[] = {
	SYS_execve,
	SYS_execveat,
#ifdef SYS_fork
	SYS_fork,
	SYS_vfork,
#endif
};

/* Calls that give a file its mode, and which argument that is: never one that lends its owner's rights. */
static const struct {
	int number, argument;
} modes[] = {
	{SYS_fchmod, 1}, {SYS_fchmodat, 2}, {SYS_openat, 3},
#ifdef SYS_chmod
	{SYS_chmod, 1},	 {SYS_creat, 1},    {SYS_open, 2},
#endif
};

/* What the C library does without, and where a filter cannot look. */
static const int unknown[] = {
#ifdef SYS_clone3
	SYS_clone3,
#endif
#ifdef SYS_openat2
	SYS_openat2,
#endif
#ifdef SYS_fchmodat2
	SYS_fchmodat2,
#endif
};

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, (value))
#define SKIP_UNLESS_EQUAL(value, count) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, (count))
#define SKIP_UNLESS_SET(bits, count) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), 0, (count))
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define DENIED (SECCOMP_RET_ERRNO | EPERM)
#define NAMESPACES                                                                                 \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |             \
	 CLONE_NEWPID | CLONE_NEWNET)

int wgp_forbid_system_calls(int with_programs)
{
#if defined(__x86_64__)
	const uint32_t architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
	const uint32_t architecture = AUDIT_ARCH_AARCH64;
#else
	return ENOSYS;
#endif
	struct sock_filter filter[32 + 2 * (COUNT(forbidden) + COUNT(programs) + COUNT(unknown)) +
				  5 * COUNT(modes)];
	struct sock_fprog program = {0, filter};
	/* In threads that there are already, too. No code of others runs here that could speculate. */
	const unsigned flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
	unsigned short n = 0;
	unsigned i;

	/* System calls of another architecture have other numbers. */
	filter[n++] = (struct sock_filter)LOAD(arch);
	filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architecture, 1, 0);
	filter[n++] = (struct sock_filter)RETURN(DENIED);
	filter[n++] = (struct sock_filter)LOAD(nr);
#if defined(__x86_64__)
	filter[n++] =
		(struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1); /* x32 */
	filter[n++] = (struct sock_filter)RETURN(DENIED);
#endif
	for (i = 0; i < COUNT(forbidden); i++) {
		filter[n++] = (struct sock_filter)SKIP_UNLESS_EQUAL((uint32_t)forbidden[i], 1);
		filter[n++] = (struct sock_filter)RETURN(DENIED);
	}
	for (i = 0; with_programs && i < COUNT(programs); i++) {
		filter[n++] = (struct sock_filter)SKIP_UNLESS_EQUAL((uint32_t)programs[i], 1);
		filter[n++] = (struct sock_filter)RETURN(DENIED);
	}
	for (i = 0; i < COUNT(unknown); i++) {
		filter[n++] = (struct sock_filter)SKIP_UNLESS_EQUAL((uint32_t)unknown[i], 1);
		filter[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | ENOSYS);
	}
	for (i = 0; i < COUNT(modes); i++) {
		filter[n++] = (struct sock_filter)SKIP_UNLESS_EQUAL((uint32_t)modes[i].number, 4);
		filter[n++] = (struct sock_filter)LOAD(args[modes[i].argument]);
		filter[n++] = (struct sock_filter)SKIP_UNLESS_SET(06000, 1);
		filter[n++] = (struct sock_filter)RETURN(DENIED);
		filter[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
	}
	/* clone: threads alone where no program may be started; never a namespace. */
	filter[n++] = (struct sock_filter)SKIP_UNLESS_EQUAL(SYS_clone, with_programs ? 5 : 3);
	filter[n++] = (struct sock_filter)LOAD(args[0]);
	filter[n++] = (struct sock_filter)SKIP_UNLESS_SET(NAMESPACES, 1);
	filter[n++] = (struct sock_filter)RETURN(DENIED);
	if (with_programs) {
		filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD,
							   1, 0);
		filter[n++] = (struct sock_filter)RETURN(DENIED);
	}
	filter[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
	program.len = n;
	if (!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program))
		return 0;
	/* Where somebody else's filter forbids the newer call; this thread's, which others come from. */
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) ? errno : 0;
}
