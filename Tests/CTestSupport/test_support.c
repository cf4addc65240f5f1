// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "test_support.h"

#include <errno.h>
#include <fcntl.h>
#include <linux_uapi.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define TRY(call)                                                                                  \
	{                                                                                          \
#call, SYS_##call,                                                                 \
		{                                                                                  \
			-1, 1, 1, 1                                                                \
		}                                                                                  \
	}

/* With arguments that are wrong, so that none that is let through does anything: it fails with another error. */
static const struct {
	const char *name;
	long number;
	long arguments[4];
} calls[] = {
	TRY(ptrace),
	TRY(process_vm_readv),
	TRY(process_vm_writev),
	TRY(mount),
	TRY(umount2),
	TRY(pivot_root),
	TRY(chroot),
	TRY(setns),
	TRY(unshare),
	TRY(execve),
	TRY(execveat),
	TRY(init_module),
	TRY(finit_module),
	TRY(delete_module),
	TRY(kexec_load),
	TRY(reboot),
	TRY(swapon),
	TRY(settimeofday),
	TRY(keyctl),
	TRY(add_key),
	TRY(perf_event_open),
	TRY(userfaultfd),
	TRY(open_by_handle_at),
	TRY(setuid),
	TRY(capset),
	TRY(personality),
#ifdef SYS_fork
	TRY(fork),
	TRY(vfork),
#endif
#ifdef SYS_io_uring_setup
	TRY(io_uring_setup),
#endif
#ifdef SYS_pidfd_send_signal
	TRY(pidfd_send_signal),
#endif
#ifdef SYS_quotactl_fd
	TRY(quotactl_fd),
#endif
	{"clone of a process", SYS_clone, {SIGCHLD}},
	{"clone into another namespace", SYS_clone, {CLONE_NEWUSER | CLONE_THREAD}},
	{"fchmod of a set-uid mode", SYS_fchmod, {-1, 04755}},
	{"fchmodat of a set-gid mode", SYS_fchmodat, {-1, 1, 02755}},
	{"openat of a set-uid file", SYS_openat, {-1, 1, O_CREAT, 04700}},
#ifdef __x86_64__
	{"a call of x32", 0x40000000 | SYS_getpid, {0}},
#endif
};

int wgt_forbidden_calls(struct wgt_attempt *attempts, size_t room, int reduced)
{
	const size_t count = sizeof(calls) / sizeof(calls[0]);
	int *errors = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const unsigned long long agent = 1ull << 12 | 1ull << 38 | 1ull << 39;
	int status = 0;
	pid_t child;

	if (errors == MAP_FAILED || count > room)
		return -ENOMEM;
	child = fork();
	if (!child) {
		if (reduced && (wgp_forbid_dumps() || wgp_keep_capabilities(agent, agent) ||
				wgp_forbid_new_privileges() || wgp_forbid_system_calls(1)))
			_exit(1);
		for (size_t i = 0; i < count; i++) {
			const long *with = calls[i].arguments;

			/* One that is let through would go on here twice. */
			if (!reduced &&
			    (strstr(calls[i].name, "fork") || strstr(calls[i].name, "clone")))
				continue;
			errno = 0;
			errors[i] = syscall(calls[i].number, with[0], with[1], with[2], with[3], 0,
					    0) < 0
					    ? errno
					    : 0;
		}
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) < 0)
		return -errno;
	for (size_t i = 0; i < count; i++)
		attempts[i] = (struct wgt_attempt){calls[i].name, errors[i]};
	munmap(errors, 4096);
	return status ? -ECHILD : (int)count;
}

long wgt_memory_contains(pid_t process, const void *bytes, size_t count)
{
	char path[64], line[512];
	long hits = 0;
	FILE *maps;
	int memory;

	snprintf(path, sizeof(path), "/proc/%d/mem", process);
	memory = open(path, O_RDONLY | O_CLOEXEC);
	if (memory < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/%d/maps", process);
	maps = fopen(path, "re");
	if (!maps) {
		close(memory);
		return -errno;
	}
	while (fgets(line, sizeof(line), maps)) {
		unsigned long start, end;
		char rights[5], *part;
		ssize_t got;

		if (sscanf(line, "%lx-%lx %4s", &start, &end, rights) != 3 || rights[0] != 'r' ||
		    rights[1] != 'w' || end - start > 1ul << 30)
			continue;
		part = malloc(end - start);
		got = part ? pread(memory, part, end - start, (off_t)start) : -1;
		for (char *at = part; got > 0; hits++) {
			at = memmem(at, (size_t)(part + got - at), bytes, count);
			if (!at)
				break;
			at++;
		}
		free(part);
	}
	fclose(maps);
	close(memory);
	return hits;
}
