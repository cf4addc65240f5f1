/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that starts programs for another one, which may start none itself. It is forked before there are
 * threads, serves one request after the other on a socket, and ends with the other side.
 *
 * A program is named by its name alone, and is looked for where this process would; it gets few options, no paths,
 * and an environment in which nothing names code to load. It has no more time than a minute.
 *
 * Request: a wgp_launch, then the arguments, the environment and the input, each text ended by a zero.
 * Answer: a wgp_launched, then what the program wrote.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "linux_uapi.h"

enum { LARGEST = 8 << 20, TEXTS = 64, PATH_TEXT = 4096, SECONDS = 60 };

/* Of iptables' programs; wireguard-go gets a device's name. */
static const char *const options[] = {"-V", "-t", "-w", "--noflush", NULL};
/* What a caller may set; the path is this process's own. */
static const char *const variables[] = {"LOG_LEVEL=", "WG_TUN_MTU=", NULL};

static int read_all(int file, void *to, size_t count)
{
	char *at = to;

	while (count) {
		ssize_t got = read(file, at, count);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return 0;
		at += got;
		count -= (size_t)got;
	}
	return 1;
}

static int write_all(int file, const void *from, size_t count)
{
	const char *at = from;

	while (count) {
		ssize_t put = send(file, at, count, MSG_NOSIGNAL);

		if (put < 0 && errno == ENOTSOCK)
			put = write(file, at, count);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return 0;
		at += put;
		count -= (size_t)put;
	}
	return 1;
}

/* The texts of a part, as pointers; NULL: it is not whole. */
static char **texts(char *part, size_t size, size_t count)
{
	/* One more for the path. */
	char **all = count < TEXTS ? calloc(count + 2, sizeof(*all)) : NULL;
	size_t i;

	for (i = 0; all && i < count; i++) {
		size_t length = strnlen(part, size);

		if (length == size) {
			free(all);
			return NULL;
		}
		all[i] = part;
		part += length + 1;
		size -= length + 1;
	}
	return all;
}

static int is_among(const char *text, const char *const *all)
{
	for (; *all; all++)
		if (!strcmp(text, *all))
			return 1;
	return 0;
}

/* Options that are known, and words without a path in them. */
static int are_plain(char *const *arguments)
{
	for (; *arguments; arguments++) {
		if (**arguments == '-' && !is_among(*arguments, options))
			return 0;
		for (const char *at = *arguments; *at; at++)
			if (!isgraph((unsigned char)*at) || *at == '/')
				return 0;
	}
	return 1;
}

/* Leaves what a caller may set, and puts the path before it. */
static void restrict_environment(char **environment, char *path)
{
	char *kept[TEXTS + 2];
	size_t count = 0;

	if (path)
		kept[count++] = path;
	for (char **text = environment; *text; text++)
		for (const char *const *name = variables; *name; name++)
			if (!strncmp(*text, *name, strlen(*name)))
				kept[count++] = *text;
	memcpy(environment, kept, count * sizeof(*kept));
	environment[count] = NULL;
}

/* Waits for a program's end; one that takes too long is killed. */
static int wait_for(pid_t pid, int *status)
{
	struct timespec step = {0, 100 * 1000}, end, now;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += SECONDS;
	for (;;) {
		pid_t gone = waitpid(pid, status, WNOHANG);

		if (gone == pid || (gone < 0 && errno != EINTR))
			return 0;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec >= end.tv_sec) {
			kill(pid, SIGKILL);
			while (waitpid(pid, status, 0) < 0 && errno == EINTR)
				;
			return ETIMEDOUT;
		}
		nanosleep(&step, NULL);
		if (step.tv_nsec < 5 * 1000 * 1000)
			step.tv_nsec *= 2;
	}
}

static struct wgp_launched launch(const struct wgp_launch *request, char *bytes, int output,
				  const char *const *allowed)
{
	struct wgp_launched answer = {.error = EINVAL};
	char *environment = bytes + request->arguments_size;
	char *input_text = environment + request->environment_size;
	char **argv = texts(bytes, request->arguments_size, request->arguments);
	char **envp = texts(environment, request->environment_size, request->environment);
	const char *own_path = getenv("PATH");
	char path[PATH_TEXT];
	int input = wgp_memory_file();
	pid_t pid;

	if (input < 0)
		answer.error = EMFILE;
	if (argv && envp && argv[0] && input >= 0) {
		answer.error = is_among(argv[0], allowed) && are_plain(argv + 1) ? 0 : EPERM;
		own_path = own_path && strlen(own_path) < PATH_TEXT - 6
				   ? own_path
				   : "/usr/sbin:/usr/bin:/sbin:/bin";
		snprintf(path, sizeof(path), "PATH=%s", own_path);
		restrict_environment(envp, path);
		if (!answer.error && !write_all(input, input_text, request->input_size))
			answer.error = EIO;
		lseek(input, 0, SEEK_SET);
		if (!answer.error)
			answer.error = wgp_spawn(&pid, argv[0], argv, envp, input, output, output,
						 (int)request->own_session);
		if (!answer.error)
			answer.error = wait_for(pid, &answer.status);
	}
	free(argv);
	free(envp);
	if (input >= 0)
		close(input);
	return answer;
}

static int serve(int socket, const char *const *allowed)
{
	struct wgp_launch request;
	struct wgp_launched answer;
	char *bytes = NULL, buffer[4096];
	size_t size;
	ssize_t got;
	int output = -1, goes_on = 0;

	if (!read_all(socket, &request, sizeof(request)))
		return 0;
	size = (size_t)request.arguments_size + request.environment_size + request.input_size;
	bytes = size <= LARGEST ? malloc(size + 1) : NULL;
	/* A program that goes on in the background keeps what it writes to. */
	output = request.capture ? wgp_memory_file() : open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (!bytes || output < 0) {
		/* The next request may find room. */
		answer = (struct wgp_launched){.error = size > LARGEST ? E2BIG : ENOMEM};
		for (goes_on = 1; goes_on && size; size -= (size_t)got) {
			got = (ssize_t)(size < sizeof(buffer) ? size : sizeof(buffer));
			goes_on = read_all(socket, buffer, (size_t)got);
		}
		goes_on = goes_on && write_all(socket, &answer, sizeof(answer));
	} else if (read_all(socket, bytes, size)) {
		answer = launch(&request, bytes, output, allowed);
		size = request.capture ? (size_t)lseek(output, 0, SEEK_END) : 0;
		answer.output_size = (uint32_t)size;
		goes_on = write_all(socket, &answer, sizeof(answer));
		/* No more than was said, whatever is written meanwhile. */
		for (size_t at = 0; goes_on && at < size; at += (size_t)got) {
			size_t part = size - at < sizeof(buffer) ? size - at : sizeof(buffer);

			got = pread(output, buffer, part, (off_t)at);
			goes_on = got > 0 && write_all(socket, buffer, (size_t)got);
		}
	}
	free(bytes);
	if (output >= 0)
		close(output);
	return goes_on;
}

int wgp_start_launcher(const char *const *allowed, uint64_t capabilities)
{
	int ends[2];
	pid_t parent = getpid(), pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
		return -errno;
	pid = fork();
	if (pid < 0) {
		int error = errno;

		close(ends[0]);
		close(ends[1]);
		return -error;
	}
	if (pid) {
		close(ends[1]);
		return ends[0];
	}
	close(ends[0]);
	/* Ends with the agent; what it has started goes on. */
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	prctl(PR_SET_NAME, "wgplane-starter", 0, 0, 0);
	setsid();
	/* It has gone already. */
	if (getppid() != parent)
		_exit(1);
	/* What is refused here was refused to the other one too, which says so. */
	(void)wgp_keep_capabilities(capabilities, capabilities);
	(void)wgp_forbid_new_privileges();
	(void)wgp_forbid_system_calls(0);
	while (serve(ends[1], allowed))
		;
	_exit(0);
}
