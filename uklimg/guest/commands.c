/*
 * A command beside the program: `uklimg exec` and health checks. PID 1 forks when a port has something to say, and the
 * child serves that one command here, so that nothing that goes wrong in it touches PID 1.
 *
 * Frames on the port, in both directions: a letter, the payload's length (32 bits, little-endian), the payload. What
 * the letters mean is in commands.py, next to this file.
 */
#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PAYLOAD_MAX (1u << 20) /* of a command's arguments and environment; others are smaller */
#define CHUNK 32768
#define HANGUP_MS 1000 /* between SIGHUP and SIGKILL, when nobody listens any more */
#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

extern char **environ;

static int port;
static pid_t child;
static int input = -1, output = -1, errors = -1; /* our ends; with a terminal, input and output are its master */
static bool terminal;
static char pending[CHUNK]; /* input on its way to the command */
static size_t pending_at, pending_size;
static int64_t kill_at;

static char *frame; /* the frame that is being read: 5 bytes and the payload */
static size_t frame_used;

static int64_t milliseconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void put(const void *data, size_t size)
{
	const char *at = data;

	while (size) {
		ssize_t done = write(port, at, size);

		if (done < 0 && errno == EAGAIN) {
			struct pollfd p = { .fd = port, .events = POLLOUT };

			poll(&p, 1, -1);
		} else if (done < 0 && errno != EINTR) {
			_exit(1); /* the host is gone */
		} else if (done > 0) {
			at += done;
			size -= (size_t)done;
		}
	}
}

static void send_frame(char kind, const void *data, size_t size)
{
	unsigned char head[5] = { (unsigned char)kind, size & 255, size >> 8 & 255, size >> 16 & 255, size >> 24 & 255 };

	put(head, sizeof(head));
	put(data, size);
}

static size_t payload_size(void)
{
	const unsigned char *head = (const unsigned char *)frame;

	return (size_t)head[1] | (size_t)head[2] << 8 | (size_t)head[3] << 16 | (size_t)head[4] << 24;
}

/* Read on in the current frame, and never beyond it; true when it is whole. */
static bool read_frame(void)
{
	for (;;) {
		size_t wanted = 5;
		ssize_t got;

		if (frame_used >= 5) {
			if (payload_size() > PAYLOAD_MAX)
				_exit(1); /* not a host of ours */
			wanted = 5 + payload_size();
			if (frame_used == wanted)
				return true;
		}
		got = read(port, frame + frame_used, wanted - frame_used);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			return false;
		if (got <= 0)
			_exit(1);
		frame_used += (size_t)got;
	}
}

static void wait_for_frame(void)
{
	while (!read_frame()) {
		struct pollfd p = { .fd = port, .events = POLLIN };

		poll(&p, 1, -1);
	}
}

/* The last words: they are repeated to nobody, so wait until the host has said that it took them. */
static void finish_session(void) __attribute__((noreturn));
static void finish_session(void)
{
	for (;;) {
		wait_for_frame();
		if (frame[0] == 'B')
			break;
		frame_used = 0;
	}
	send_frame('D', "", 0);
	_exit(0);
}

static void failed(int error) __attribute__((noreturn));
static void failed(int error)
{
	const char *text = strerror(error);

	send_frame('F', text, strlen(text));
	frame_used = 0;
	finish_session();
}

struct command {
	char **argv, **env;
	const char *workdir;
	struct winsize size;
};

static void add(char ***list, char *item)
{
	size_t count = 0;

	while (*list && (*list)[count])
		count++;
	*list = realloc(*list, (count + 2) * sizeof(**list));
	if (!*list)
		failed(ENOMEM);
	(*list)[count] = item;
	(*list)[count + 1] = NULL;
}

static void add_variable(char ***list, char *item)
{
	size_t length = strcspn(item, "=");

	for (char **at = *list; at && *at; at++)
		if (!strncmp(*at, item, length) && (*at)[length] == '=') {
			*at = item;
			return;
		}
	add(list, item);
}

static void take_command(struct command *c)
{
	char *at = frame + 5, *end = at + payload_size();

	while (at < end && *at) {
		char *value = strchr(at, '=');
		size_t length = strlen(at); /* the byte after the payload is 0 */

		if (!value)
			failed(EINVAL);
		*value++ = '\0';
		if (!strcmp(at, "arg"))
			add(&c->argv, value);
		else if (!strcmp(at, "env"))
			add_variable(&c->env, value);
		else if (!strcmp(at, "workdir"))
			c->workdir = value;
		else if (!strcmp(at, "tty"))
			terminal = *value == '1';
		else if (!strcmp(at, "rows"))
			c->size.ws_row = (unsigned short)atoi(value);
		else if (!strcmp(at, "columns"))
			c->size.ws_col = (unsigned short)atoi(value);
		at += length + 1;
	}
	if (!c->argv)
		failed(EINVAL);
}

static void run_command(struct command *c, const int *fds, int failure) __attribute__((noreturn));
static void run_command(struct command *c, const int *fds, int failure)
{
	sigset_t none;
	int error;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (terminal)
		ioctl(fds[0], TIOCSCTTY, 0);
	for (int i = 0; i < 3; i++)
		dup2(fds[i], i);
	environ = c->env; /* whose PATH execvpe searches */
	if (chdir(c->workdir) == 0)
		execvpe(c->argv[0], c->argv, c->env);
	error = errno;
	while (write(failure, &error, sizeof(error)) < 0 && errno == EINTR)
		;
	_exit(127);
}

static void open_terminal(struct command *c, int *fds)
{
	output = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (output < 0 || grantpt(output) || unlockpt(output))
		failed(errno);
	fds[0] = open(ptsname(output), O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fds[0] < 0)
		failed(errno);
	fds[1] = fds[2] = fds[0];
	input = output;
	ioctl(output, TIOCSWINSZ, &c->size);
}

static void open_pipes(int *fds)
{
	int in[2], out[2], err[2];

	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		failed(errno);
	fds[0] = in[0], input = in[1];
	fds[1] = out[1], output = out[0];
	fds[2] = err[1], errors = err[0];
}

static void start_command(struct command *c)
{
	int fds[3], failure[2], error = 0;

	if (terminal)
		open_terminal(c, fds);
	else
		open_pipes(fds);
	if (pipe2(failure, O_CLOEXEC))
		failed(errno);
	child = fork();
	if (child == 0)
		run_command(c, fds, failure[1]);
	if (child < 0)
		failed(errno);
	close(failure[1]);
	for (int i = 0; i < (terminal ? 1 : 3); i++)
		close(fds[i]);
	while (read(failure[0], &error, sizeof(error)) < 0 && errno == EINTR)
		;
	close(failure[0]);
	if (error) {
		waitpid(child, NULL, 0);
		failed(error);
	}
	fcntl(input, F_SETFL, O_NONBLOCK);
	fcntl(output, F_SETFL, O_NONBLOCK);
	if (errors >= 0)
		fcntl(errors, F_SETFL, O_NONBLOCK);
}

static void close_input(void)
{
	if (terminal) {
		/* A terminal has no end: Ctrl-D is what its line discipline takes for one. */
		if (write(output, "\004", 1) < 0)
			return;
	} else if (input >= 0) {
		close(input);
		input = -1;
	}
}

/* The frame's bytes on their way to the command; the host sends the next ones after 'A'. */
static void write_input(void)
{
	while (pending_size) {
		ssize_t done = input < 0 ? (ssize_t)pending_size : write(input, pending + pending_at, pending_size);

		if (done < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (done < 0) { /* it has closed its input */
			if (!terminal)
				close_input();
			done = (ssize_t)pending_size;
		}
		pending_at += (size_t)done;
		pending_size -= (size_t)done;
		if (!pending_size)
			send_frame('A', "", 0);
	}
}

static void take_frame(void)
{
	const unsigned char *data = (const unsigned char *)frame + 5;
	size_t size = payload_size();

	if (frame[0] == 'I' && size) {
		if (pending_size || size > sizeof(pending))
			_exit(1); /* not a host of ours */
		memcpy(pending, data, size);
		pending_at = 0;
		pending_size = size;
		write_input();
	} else if (frame[0] == 'I') {
		close_input();
	} else if (frame[0] == 'W' && size == 4 && terminal) {
		struct winsize ws = { .ws_row = data[0] | data[1] << 8, .ws_col = data[2] | data[3] << 8 };

		ioctl(output, TIOCSWINSZ, &ws);
	} else if (frame[0] == 'K' && size == 1) {
		kill(-child, data[0]);
	} else if (frame[0] == 'Q') {
		kill(-child, SIGHUP);
		kill(-child, SIGCONT);
		kill_at = milliseconds() + HANGUP_MS;
	}
	frame_used = 0;
}

/* One piece of output; false at its end, or, `dry`, when there is none now. */
static bool pass_on(int fd, char kind, bool dry)
{
	char data[CHUNK];
	ssize_t got = read(fd, data, sizeof(data));

	if (got > 0)
		send_frame(kind, data, (size_t)got);
	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return !dry;
	return got > 0; /* a terminal whose last user is gone says EIO */
}

static void serve(void) __attribute__((noreturn));
static void serve(void)
{
	unsigned char ending[2] = { 0 };
	int status = 0;
	sigset_t set;
	int signals;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	while (waitpid(child, &status, WNOHANG) == 0) {
		struct signalfd_siginfo info;
		struct pollfd fds[5] = {
			{ .fd = signals, .events = POLLIN },
			{ .fd = port, .events = POLLIN },
			{ .fd = pending_size ? input : -1, .events = POLLOUT },
			{ .fd = output, .events = POLLIN },
			{ .fd = errors, .events = POLLIN },
		};
		int64_t left = kill_at ? kill_at - milliseconds() : -1;

		poll(fds, 5, kill_at && left < 0 ? 0 : (int)left);
		if (kill_at && milliseconds() >= kill_at) {
			kill(-child, SIGKILL);
			kill_at = 0;
		}
		while (read(signals, &info, sizeof(info)) > 0)
			;
		if (fds[1].revents && read_frame())
			take_frame();
		if (fds[2].revents)
			write_input();
		if (fds[3].revents && !pass_on(output, 'O', false))
			output = -1;
		if (fds[4].revents && !pass_on(errors, 'E', false))
			errors = -1;
	}
	/* What it left in the pipes; what it left running goes on, and does not keep us. */
	while (output >= 0 && pass_on(output, 'O', true))
		;
	while (errors >= 0 && pass_on(errors, 'E', true))
		;
	ending[0] = WIFSIGNALED(status);
	ending[1] = (unsigned char)(WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	send_frame('X', ending, sizeof(ending));
	finish_session();
}

void serve_command(int fd, char **env, const char *workdir)
{
	struct command c = { .workdir = workdir };

	port = fd;
	signal(SIGPIPE, SIG_IGN);
	frame = malloc(5 + PAYLOAD_MAX + 1);
	if (!frame)
		_exit(1);
	wait_for_frame();
	if (frame[0] != 'S')
		_exit(1);
	frame[frame_used] = '\0';
	add_variable(&c.env, (char[]){ DEFAULT_PATH });
	for (; env && *env; env++)
		add_variable(&c.env, *env);
	take_command(&c);
	start_command(&c);
	frame_used = 0;
	serve();
}
