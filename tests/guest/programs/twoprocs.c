/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two instances of the same program at once, each started by exec and so with its own data, talking through FIFOs.
 *
 *   twoprocs            starts both (twice, so that four live at once), waits for them
 *   twoprocs ROLE PATH  is one of them: ROLE a or b; PATH-ab and PATH-ba are the FIFOs, made by whoever comes first
 */
#include "uklcheck.h"

#include <sched.h>
#include <spawn.h>
#include <sys/time.h>

#define MESSAGES 2000
#define PRIVATE 100000

extern char **environ;

static uint64_t private_data[PRIVATE] = {42};
static uint64_t private_bss[PRIVATE];
static __thread int private_tls = 9;
static volatile sig_atomic_t alarms;

struct message {
	char from;
	uint32_t number;
	uint64_t payload[30];
	uint64_t hash;
};

static void on_alarm(int number)
{
	(void)number;
	ukl_check_mode();
	alarms++;
}

static const char *fifo_name(char fifo[520], const char *path, const char *name)
{
	snprintf(fifo, 520, "%s-%s", path, name);
	return fifo;
}

static int open_fifo(const char *path, const char *name, int flags)
{
	char fifo[520];

	fifo_name(fifo, path, name);
	if (mkfifo(fifo, 0600) != 0)
		CHECK(errno == EEXIST);
	return (int)SYS(open(fifo, flags | O_CLOEXEC));
}

static void send_message(int fd, char role, uint32_t number)
{
	struct message message;
	uint64_t state = number * 2u + (role == 'b');

	memset(&message, 0, sizeof message);
	message.from = role;
	message.number = number;
	for (int i = 0; i < 30; i++)
		message.payload[i] = ukl_random(&state);
	message.hash = ukl_hash(0, message.payload, sizeof message.payload);
	ukl_write_all(fd, &message, sizeof message);
}

static uint64_t receive_message(int fd, char from, uint32_t number)
{
	struct message message;

	ukl_read_all(fd, &message, sizeof message);
	CHECK_EQ(message.from, from);
	CHECK_EQ(message.number, number);
	CHECK(message.hash == ukl_hash(0, message.payload, sizeof message.payload));
	return message.hash;
}

static void mark_private(char role)
{
	CHECK(private_data[0] == 42 && private_data[PRIVATE - 1] == 0 && private_bss[PRIVATE - 1] == 0 && private_tls == 9);
	for (uint32_t i = 0; i < PRIVATE; i++) {
		private_data[i] = (uint64_t)(unsigned char)role << 32 | i;
		private_bss[i] = ~private_data[i];
	}
	private_tls = role;
}

static void check_private(char role)
{
	for (uint32_t i = 0; i < PRIVATE; i++)
		CHECK(private_data[i] == ((uint64_t)(unsigned char)role << 32 | i) && private_bss[i] == ~private_data[i]);
	CHECK_EQ(private_tls, role);
}

static int play(char role, const char *path)
{
	struct itimerval every = {{0, 3000}, {0, 3000}}, never = {{0, 0}, {0, 0}};
	char other = role == 'a' ? 'b' : 'a';
	int out, in;
	uint64_t seen = 0;

	mark_private(role);
	/* Both open the same FIFO first, or each would wait for the other for ever. */
	if (role == 'a') {
		out = open_fifo(path, "ab", O_WRONLY);
		in = open_fifo(path, "ba", O_RDONLY);
	} else {
		in = open_fifo(path, "ab", O_RDONLY);
		out = open_fifo(path, "ba", O_WRONLY);
	}
	ukl_handle(SIGALRM, on_alarm, SA_RESTART);
	SYS(setitimer(ITIMER_REAL, &every, NULL));
	for (uint32_t i = 0; i < MESSAGES; i++) {
		if (role == 'a')
			send_message(out, role, i);
		seen = seen * 31 + receive_message(in, other, i);
		if (role == 'b')
			send_message(out, role, i);
		if (i % 500 == 0)
			check_private(role);
		if (i % 100 == 0) {
			pid_t child = (pid_t)SYS(fork());

			if (child == 0) {
				CHECK_EQ(private_tls, role);
				private_data[3] = 0;
				_exit(0);
			}
			ukl_wait_exit(child, 0);
		}
	}
	SYS(setitimer(ITIMER_REAL, &never, NULL));
	check_private(role);
	ukl_check_mode();
	return 0;
}

int main(int argc, char **argv)
{
	char self[256], path[2][256], fifo[520];
	pid_t child[4];

	ukl_begin("twoprocs");
	if (argc == 3 && (argv[1][0] == 'a' || argv[1][0] == 'b') && argv[1][1] == 0)
		return play(argv[1][0], argv[2]);
	CHECK_EQ(argc, 1);
	ukl_self(self, argv[0]);
	for (int i = 0; i < 4; i++) {
		char *arguments[] = {self, i % 2 ? "b" : "a", path[i / 2], NULL};

		ukl_tmp(path[i / 2], i / 2 ? "second" : "first");
		CHECK_OK(posix_spawn(&child[i], self, NULL, NULL, arguments, environ));
	}
	for (int i = 0; i < 4; i++)
		ukl_wait_exit(child[i], 0);
	CHECK(private_data[0] == 42 && private_tls == 9);
	for (int i = 0; i < 2; i++) {
		SYS(unlink(fifo_name(fifo, path[i], "ab")));
		SYS(unlink(fifo_name(fifo, path[i], "ba")));
	}
	printf("two pairs of instances: %d messages each way\n", MESSAGES);
	return ukl_end();
}
