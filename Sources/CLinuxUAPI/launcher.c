/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that starts programs for another one, which may start none itself. It is forked before there are
 * threads, serves one request after the other on a socket, and ends with the other side.
 *
 * Request: a wgp_launch, then the arguments, the environment and the input, each text ended by a zero.
 * Answer: a wgp_launched, then what the program wrote.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "linux_uapi.h"

enum { LARGEST = 8 << 20, TEXTS = 4096 };

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
	char **all = count < TEXTS ? calloc(count + 1, sizeof(*all)) : NULL;
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

static int is_allowed(const char *program, const char *const *allowed)
{
	for (; *allowed; allowed++)
		if (!strcmp(program, *allowed))
			return 1;
	return 0;
}

static struct wgp_launched launch(const struct wgp_launch *request, char *bytes, int output,
				  const char *const *allowed)
{
	struct wgp_launched answer = {.error = EINVAL};
	char *environment = bytes + request->arguments_size;
	char *input_text = environment + request->environment_size;
	char **argv = texts(bytes, request->arguments_size, request->arguments);
	char **envp = texts(environment, request->environment_size, request->environment);
	int input = wgp_memory_file();
	pid_t pid;

	if (argv && envp && argv[0] && input >= 0) {
		answer.error = is_allowed(argv[0], allowed) ? 0 : EPERM;
		if (!answer.error && !write_all(input, input_text, request->input_size))
			answer.error = EIO;
		lseek(input, 0, SEEK_SET);
		if (!answer.error)
			answer.error = wgp_spawn(&pid, argv[0], argv, envp, input, output, output,
						 (int)request->own_session);
		if (!answer.error)
			while (waitpid(pid, &answer.status, 0) < 0 && errno == EINTR)
				;
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
	if (size > LARGEST)
		return 0;
	bytes = malloc(size + 1);
	/* A program that goes on in the background keeps what it writes to. */
	output = request.capture ? wgp_memory_file() : open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (bytes && output >= 0 && read_all(socket, bytes, size)) {
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
	if (pid < 0)
		return -errno;
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
