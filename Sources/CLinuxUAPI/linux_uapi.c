/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include "linux_uapi.h"

#include <stdio.h>
#include <unistd.h>

const unsigned wgp_clone_newnet = CLONE_NEWNET;
const unsigned wgp_clone_newns = CLONE_NEWNS;
const unsigned wgp_clone_fs = CLONE_FS;
const unsigned long wgp_ms_bind = MS_BIND;
const unsigned long wgp_ms_private = MS_PRIVATE;
const unsigned long wgp_ms_rec = MS_REC;
const unsigned long wgp_ms_nosuid = MS_NOSUID;
const unsigned long wgp_ms_nodev = MS_NODEV;
const unsigned long wgp_ms_noexec = MS_NOEXEC;
const unsigned long wgp_mnt_detach = MNT_DETACH;
const long wgp_bpf_fs_magic = 0xcafe4a11; /* BPF_FS_MAGIC, <linux/magic.h> */

void wgp_line_buffered_output(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
}

int wgp_setns(int descriptor, int kind)
{
	return setns(descriptor, kind);
}

int wgp_unshare(int kinds)
{
	return unshare(kinds);
}

int wgp_memory_file(void)
{
	return syscall(SYS_memfd_create, "wgplane", 1 /* MFD_CLOEXEC */);
}

int wgp_gettid(void)
{
	return (int)syscall(SYS_gettid);
}

int wgp_open(const char *path, int flags, unsigned mode)
{
	return open(path, flags, mode);
}

int wgp_spawn(pid_t *pid, const char *path, char *const *argv, char *const *envp, int in, int out,
	      int err, int own_session)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none, all;
	short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
	int error;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	posix_spawn_file_actions_adddup2(&actions, in, 0);
	posix_spawn_file_actions_adddup2(&actions, out, 1);
	posix_spawn_file_actions_adddup2(&actions, err, 2);
	if (own_session)
		flags |= POSIX_SPAWN_SETSID;
	posix_spawnattr_setflags(&attributes, flags);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	error = posix_spawnp(pid, path, &actions, &attributes, argv, envp);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	return error;
}

int wgp_file_contains(const char *path, size_t limit, const void *part, size_t count)
{
	int file = open(path, O_RDONLY | O_CLOEXEC), found = 0;
	size_t have = 0;
	char *bytes;

	if (file < 0)
		return 0;
	bytes = malloc(limit);
	while (bytes && have < limit) {
		ssize_t got = read(file, bytes + have, limit - have);

		if (got <= 0)
			break;
		have += (size_t)got;
	}
	if (bytes)
		found = memmem(bytes, have, part, count) != NULL;
	free(bytes);
	close(file);
	return found;
}
