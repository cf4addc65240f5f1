/* SPDX-License-Identifier: Apache-2.0 */
/* What tests need of C: processes that give up what they may, and other processes' memory. */
#ifndef WGPLANE_TEST_SUPPORT_H
#define WGPLANE_TEST_SUPPORT_H

#include <stddef.h>
#include <sys/types.h>

/* A system call that a process without privileges tries. */
struct wgt_attempt {
	const char *name;
	/* errno; 0: it was let through. */
	int error;
};

/* Forks a process that gives up what an agent does (`reduced`), and has it try what it may not any more. Fills in at most
 * `room`, and returns how many, or -errno. */
int wgt_forbidden_calls(struct wgt_attempt *attempts, size_t room, int reduced);

/* How often bytes are in the memory that a process may write; -errno where it cannot be read. */
long wgt_memory_contains(pid_t process, const void *bytes, size_t count);

#endif
