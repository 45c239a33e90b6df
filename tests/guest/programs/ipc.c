/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipes, poll, epoll, select, eventfd, timerfd, signalfd, socket pairs, and what signals do to calls that wait: EINTR, restart
 * (also through restart_syscall), and the signal masks of ppoll and sigsuspend.
 */
#include "uklcheck.h"

#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>

#define STREAM (4u << 20)

static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
	(void)number;
	ukl_check_mode();
	alarms++;
}

static void alarm_every(long us)
{
	struct itimerval timer = {{0, us}, {0, us}};

	SYS(setitimer(ITIMER_REAL, &timer, NULL));
}

static void pipes(void)
{
	uint64_t state = 1, hash = 0;
	static char block[65536];
	int ends[2], status;
	pid_t child;

	SYS(pipe(ends));
	child = (pid_t)SYS(fork());
	if (child == 0) {
		SYS(close(ends[0]));
		for (unsigned sent = 0; sent < STREAM;) {
			unsigned chunk = 1 + (unsigned)(ukl_random(&state) % 30000);

			if (chunk > STREAM - sent)
				chunk = STREAM - sent;
			for (unsigned i = 0; i < chunk; i++)
				block[i] = (char)((sent + i) * 7);
			ukl_write_all(ends[1], block, chunk);
			sent += chunk;
		}
		_exit(0);
	}
	SYS(close(ends[1]));
	for (unsigned got = 0; got < STREAM;) {
		ssize_t chunk = SYS(read(ends[0], block, 10007));

		for (ssize_t i = 0; i < chunk; i++)
			CHECK(block[i] == (char)((got + (unsigned)i) * 7));
		hash = ukl_hash(hash, block, (size_t)chunk);
		CHECK(chunk > 0);
		got += (unsigned)chunk;
	}
	CHECK_EQ(read(ends[0], block, 1), 0);
	SYS(close(ends[0]));
	ukl_wait_exit(child, 0);
	printf("pipe: %u bytes, hash %016llx\n", STREAM, (unsigned long long)hash);

	SYS(pipe2(ends, O_NONBLOCK));
	CHECK_FAILS(read(ends[0], block, 1), EAGAIN);
	for (status = 0; write(ends[1], block, 4096) == 4096; status++)
		;
	CHECK_EQ(errno, EAGAIN);
	CHECK_EQ(status, 16);
	SYS(close(ends[0]));
	ukl_handle(SIGPIPE, SIG_IGN, 0);
	CHECK_FAILS(write(ends[1], block, 1), EPIPE);
	SYS(close(ends[1]));
	child = (pid_t)SYS(fork());
	if (child == 0) {
		ukl_handle(SIGPIPE, SIG_DFL, 0);
		SYS(pipe(ends));
		SYS(close(ends[0]));
		(void)!write(ends[1], block, 1);
		_exit(1);
	}
	ukl_wait_signal(child, SIGPIPE);
	puts("full, empty and broken pipes: ok");
}

static void polling(void)
{
	static fd_set reads, writes; /* static: the kernel writes into .bss */
	struct timeval none = {0, 0}, little = {0, 20000};
	struct pollfd fds[3];
	int a[2], b[2];
	char byte = 'x';

	SYS(pipe(a));
	SYS(pipe(b));
	fds[0] = (struct pollfd){a[0], POLLIN, 0};
	fds[1] = (struct pollfd){b[0], POLLIN, 0};
	fds[2] = (struct pollfd){a[1], POLLOUT, 0};
	CHECK_EQ(poll(fds, 2, 0), 0);
	CHECK_EQ(poll(fds, 2, 10), 0);
	CHECK_EQ(poll(fds, 3, -1), 1);
	CHECK_EQ(fds[2].revents, POLLOUT);
	ukl_write_all(b[1], &byte, 1);
	CHECK_EQ(poll(fds, 3, -1), 2);
	CHECK_EQ(fds[0].revents, 0);
	CHECK_EQ(fds[1].revents, POLLIN);

	FD_ZERO(&reads);
	FD_ZERO(&writes);
	FD_SET(a[0], &reads);
	FD_SET(b[0], &reads);
	FD_SET(a[1], &writes);
	CHECK_EQ(select(b[1] + 1, &reads, &writes, NULL, NULL), 2);
	CHECK(!FD_ISSET(a[0], &reads) && FD_ISSET(b[0], &reads) && FD_ISSET(a[1], &writes));
	ukl_read_all(b[0], &byte, 1);
	FD_ZERO(&reads);
	FD_SET(b[0], &reads);
	CHECK_EQ(select(b[0] + 1, &reads, NULL, NULL, &none), 0);
	FD_SET(b[0], &reads);
	CHECK_EQ(select(b[0] + 1, &reads, NULL, NULL, &little), 0);
	SYS(close(b[1]));
	CHECK_EQ(poll(&fds[1], 1, -1), 1);
	CHECK_EQ(fds[1].revents, POLLHUP);
	fds[1].fd = 1000;
	CHECK_EQ(poll(&fds[1], 1, -1), 1);
	CHECK_EQ(fds[1].revents, POLLNVAL);
	SYS(close(a[0]));
	SYS(close(a[1]));
	SYS(close(b[0]));
	puts("poll, select: ok");
}

static void epoll_modes(void)
{
	static struct epoll_event events[8];
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 111};
	int epoll = (int)SYS(epoll_create1(EPOLL_CLOEXEC)), ends[2];
	char text[16];

	SYS(pipe(ends));
	SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
	CHECK_FAILS(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event), EEXIST);
	CHECK_EQ(epoll_wait(epoll, events, 8, 0), 0);
	ukl_write_all(ends[1], "0123456789", 10);
	for (int i = 0; i < 3; i++) { /* level-triggered: again and again */
		CHECK_EQ(epoll_wait(epoll, events, 8, -1), 1);
		CHECK_EQ(events[0].data.u64, 111);
	}
	event = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.u64 = 222};
	SYS(epoll_ctl(epoll, EPOLL_CTL_MOD, ends[0], &event));
	CHECK_EQ(epoll_wait(epoll, events, 8, -1), 1);
	CHECK_EQ(events[0].data.u64, 222);
	CHECK_EQ(epoll_wait(epoll, events, 8, 10), 0); /* edge-triggered: once */
	ukl_write_all(ends[1], "x", 1);
	CHECK_EQ(epoll_wait(epoll, events, 8, -1), 1);
	ukl_read_all(ends[0], text, 11);
	event = (struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 333};
	SYS(epoll_ctl(epoll, EPOLL_CTL_MOD, ends[0], &event));
	ukl_write_all(ends[1], "y", 1);
	CHECK_EQ(epoll_wait(epoll, events, 8, -1), 1);
	CHECK_EQ(epoll_wait(epoll, events, 8, 10), 0);
	SYS(epoll_ctl(epoll, EPOLL_CTL_DEL, ends[0], NULL));
	SYS(close(ends[0]));
	SYS(close(ends[1]));
	SYS(close(epoll));
	puts("epoll: level, edge, one shot");
}

/* A pair of processes pass a token through 100 socket pairs watched by one epoll. */
static void epoll_many(void)
{
	enum { PAIRS = 100, TOKENS = 3000 };
	static int near[PAIRS], far[PAIRS];
	struct epoll_event events[16];
	int epoll = (int)SYS(epoll_create1(0)), done = 0;
	uint64_t state = 5;
	pid_t child;

	for (int i = 0; i < PAIRS; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.fd = i};
		int ends[2];

		SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
		near[i] = ends[0];
		far[i] = ends[1];
		SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, near[i], &event));
	}
	child = (pid_t)SYS(fork());
	if (child == 0) {
		for (int i = 0; i < TOKENS; i++) {
			size_t pair = ukl_random(&state) % PAIRS;
			int answer = 0;

			ukl_write_all(far[pair], &i, sizeof i);
			ukl_read_all(far[pair], &answer, sizeof answer);
			CHECK_EQ(answer, i + 1);
		}
		_exit(0);
	}
	while (done < TOKENS) {
		int ready = (int)SYS(epoll_wait(epoll, events, 16, 120000));

		CHECK(ready > 0);
		for (int i = 0; i < ready; i++) {
			int value, fd = near[events[i].data.fd];

			ukl_read_all(fd, &value, sizeof value);
			CHECK_EQ(value, done);
			value++;
			ukl_write_all(fd, &value, sizeof value);
			done++;
		}
	}
	ukl_wait_exit(child, 0);
	for (int i = 0; i < PAIRS; i++) {
		SYS(close(near[i]));
		SYS(close(far[i]));
	}
	SYS(close(epoll));
	printf("epoll over %d socket pairs: %d tokens\n", PAIRS, done);
}

static void event_descriptors(void)
{
	struct itimerspec timer = {{0, 2000000}, {0, 2000000}};
	struct signalfd_siginfo info;
	struct pollfd fds[1];
	sigset_t set, old;
	uint64_t value = 0, expirations = 0;
	int fd = eventfd(3, EFD_NONBLOCK | EFD_CLOEXEC);

	CHECK(fd >= 0);
	ukl_read_all(fd, &value, 8);
	CHECK_EQ(value, 3);
	CHECK_FAILS(read(fd, &value, 8), EAGAIN);
	value = 5;
	ukl_write_all(fd, &value, 8);
	ukl_write_all(fd, &value, 8);
	ukl_read_all(fd, &value, 8);
	CHECK_EQ(value, 10);
	SYS(close(fd));

	fd = (int)SYS(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	SYS(timerfd_settime(fd, 0, &timer, NULL));
	while (expirations < 20) {
		fds[0] = (struct pollfd){fd, POLLIN, 0};
		CHECK_EQ(poll(fds, 1, 60000), 1);
		ukl_read_all(fd, &value, 8);
		CHECK(value > 0);
		expirations += value;
	}
	SYS(close(fd));

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 1);
	SYS(sigprocmask(SIG_BLOCK, &set, &old));
	fd = (int)SYS(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
	CHECK_FAILS(read(fd, &info, sizeof info), EAGAIN);
	for (int i = 0; i < 5; i++) {
		union sigval payload = {.sival_int = 100 + i};

		SYS(sigqueue(getpid(), SIGRTMIN + 1, payload));
		SYS(kill(getpid(), SIGUSR1));
	}
	ukl_read_all(fd, &info, sizeof info);
	CHECK_EQ(info.ssi_signo, SIGUSR1);
	for (int i = 0; i < 5; i++) { /* real-time signals queue, in order */
		ukl_read_all(fd, &info, sizeof info);
		CHECK_EQ(info.ssi_signo, SIGRTMIN + 1);
		CHECK_EQ(info.ssi_int, 100 + i);
	}
	CHECK_FAILS(read(fd, &info, sizeof info), EAGAIN);
	SYS(close(fd));
	SYS(sigprocmask(SIG_SETMASK, &old, NULL));
	puts("eventfd, timerfd, signalfd: ok");
}

static void interrupted_calls(void)
{
	struct timespec long_time = {100, 0}, left = {0, 0};
	struct pollfd fds[1];
	int ends[2];
	char byte;

	SYS(pipe(ends));
	ukl_handle(SIGALRM, on_alarm, 0);
	/* Periodic: on a slow machine one signal may come before the call it is meant for. */
	alarm_every(20000);
	CHECK_FAILS(read(ends[0], &byte, 1), EINTR);
	CHECK_FAILS(nanosleep(&long_time, &left), EINTR);
	CHECK(left.tv_sec >= 90 && left.tv_sec < 100);
	fds[0] = (struct pollfd){ends[0], POLLIN, 0};
	CHECK_FAILS(poll(fds, 1, -1), EINTR);
	CHECK_FAILS(pause(), EINTR);
	CHECK(alarms >= 4);
	CHECK_FAILS(waitpid(-1, NULL, 0), ECHILD);
	/* With SA_RESTART poll and nanosleep are interrupted all the same. */
	ukl_handle(SIGALRM, on_alarm, SA_RESTART);
	CHECK_FAILS(poll(fds, 1, -1), EINTR);
	CHECK_FAILS(nanosleep(&long_time, NULL), EINTR);
	CHECK(alarms >= 6);
	alarm_every(0);
	SYS(close(ends[0]));
	SYS(close(ends[1]));
	puts("EINTR: read, nanosleep, poll, pause");
}

/* Raw system calls, with registers the compiler keeps live across: a restart must find all arguments again. */
static void restarted_calls(void)
{
	int ends[2], status = 0;
	pid_t child;

	SYS(pipe(ends));
	ukl_handle(SIGALRM, on_alarm, SA_RESTART);
	alarms = 0;
	child = (pid_t)SYS(fork());
	if (child == 0) {
		for (int i = 0; i < 20; i++) {
			ukl_sleep_ms(10);
			ukl_write_all(ends[1], &i, sizeof i);
		}
		_exit(9);
	}
	alarm_every(1000);
	for (int i = 0; i < 20; i++) {
		int value = -1;

		CHECK_EQ(syscall(SYS_read, ends[0], &value, sizeof value), sizeof value);
		CHECK_EQ(value, i);
	}
	CHECK_EQ(syscall(SYS_wait4, child, &status, 0, NULL) - child, 0);
	alarm_every(0);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9);
	CHECK(alarms > 10);
	SYS(close(ends[0]));
	SYS(close(ends[1]));
	puts("SA_RESTART: read and wait4 restarted, all arguments kept");
}

/* A stop in the middle of a wait: restart_syscall continues with the time that is left. */
static void stopped_calls(void)
{
	for (int how = 0; how < 3; how++) {
		pid_t child = (pid_t)SYS(fork());
		int status;

		if (child == 0) {
			struct timespec half = {0, 300000000};
			struct pollfd none = {-1, 0, 0};
			long long start = ukl_now_ms();
			uint32_t word = 0;

			if (how == 0)
				CHECK_EQ(syscall(SYS_nanosleep, &half, &half), 0);
			else if (how == 1)
				CHECK_EQ(syscall(SYS_poll, &none, 1, 300), 0);
			else
				CHECK_FAILS(syscall(SYS_futex, &word, 0 /* FUTEX_WAIT */, 0, &half, NULL, 0), ETIMEDOUT);
			CHECK(ukl_now_ms() - start >= 299);
			_exit(how);
		}
		for (int i = 0; i < 5; i++) {
			ukl_sleep_ms(15);
			SYS(kill(child, SIGSTOP));
			CHECK_EQ(waitpid(child, &status, WUNTRACED) - child, 0);
			CHECK(WIFSTOPPED(status));
			SYS(kill(child, SIGCONT));
		}
		ukl_wait_exit(child, how);
	}
	puts("stopped and continued: nanosleep, poll and futex end in their own time");
}

static volatile sig_atomic_t order[8], received;

static void on_ordered(int number, siginfo_t *info, void *context)
{
	(void)context;
	CHECK(received < 8);
	order[received++] = number == SIGUSR1 ? 1000 : info->si_value.sival_int;
}

static void masks(void)
{
	struct timespec none = {0, 0}, second = {1, 0};
	struct pollfd nothing = {-1, 0, 0};
	siginfo_t info;
	sigset_t set, empty, old, pending;

	sigemptyset(&empty);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN);
	SYS(sigprocmask(SIG_BLOCK, &set, &old));
	ukl_handle_info(SIGUSR1, on_ordered, 0);
	ukl_handle_info(SIGRTMIN, on_ordered, 0);
	CHECK_FAILS(sigtimedwait(&set, NULL, &none), EAGAIN);
	for (int i = 0; i < 3; i++)
		SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i}));
	SYS(raise(SIGUSR1));
	SYS(sigpending(&pending));
	CHECK(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGRTMIN));
	CHECK_EQ(received, 0);
	CHECK_EQ(sigtimedwait(&set, &info, &second), SIGUSR1);
	CHECK_EQ(sigwaitinfo(&set, &info), SIGRTMIN);
	CHECK_EQ(info.si_value.sival_int, 0);
	CHECK_FAILS(ppoll(&nothing, 1, NULL, &empty), EINTR);
	/* One a wait: the second is blocked by the first one's handler, and then by the mask that comes back. */
	CHECK_EQ(received, 1);
	CHECK_EQ(order[0], 1);
	CHECK_FAILS(ppoll(&nothing, 1, NULL, &empty), EINTR);
	CHECK_EQ(received, 2);
	CHECK_EQ(order[1], 2);
	SYS(raise(SIGUSR1));
	CHECK_EQ(received, 2);
	CHECK_FAILS(sigsuspend(&empty), EINTR);
	CHECK_EQ(received, 3);
	CHECK_EQ(order[2], 1000);
	SYS(raise(SIGUSR1));
	CHECK_FAILS(pselect(0, NULL, NULL, NULL, NULL, &empty), EINTR);
	CHECK_EQ(received, 4);
	SYS(sigprocmask(SIG_SETMASK, &old, NULL));
	CHECK_EQ(received, 4);
	puts("signal masks: sigtimedwait, ppoll, pselect, sigsuspend");
}

static void send_descriptor(int over, int fd)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char text[] = "fd";
	struct iovec vector = {text, 2};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
	struct cmsghdr *header;

	memset(&control, 0, sizeof control);
	header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	CHECK_EQ(sendmsg(over, &message, 0), 2);
}

static int receive_descriptor(int over)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char text[4];
	struct iovec vector = {text, sizeof text};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
	struct cmsghdr *header;
	int fd;

	CHECK_EQ(recvmsg(over, &message, 0), 2);
	header = CMSG_FIRSTHDR(&message);
	CHECK(header && header->cmsg_type == SCM_RIGHTS);
	memcpy(&fd, CMSG_DATA(header), sizeof fd);
	return fd;
}

static void sockets(void)
{
	int pair[2], ends[2], got;
	char text[64];
	pid_t child;

	SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	child = (pid_t)SYS(fork());
	if (child == 0) {
		SYS(close(pair[0]));
		SYS(pipe(ends));
		send_descriptor(pair[1], ends[0]);
		ukl_write_all(ends[1], "over a passed pipe", 18);
		CHECK_EQ(send(pair[1], "one", 3, 0), 3);
		CHECK_EQ(send(pair[1], "second", 6, 0), 6);
		/*
		 * The end must not come before all was read: a reader that Linux holds up between looking for records and
		 * looking for the end (__skb_wait_for_more_packets) takes the end for all there is.
		 */
		CHECK_EQ(recv(pair[1], text, sizeof text, 0), 4);
		_exit(0);
	}
	SYS(close(pair[1]));
	got = receive_descriptor(pair[0]);
	ukl_read_all(got, text, 18);
	CHECK_EQ(memcmp(text, "over a passed pipe", 18), 0);
	CHECK_EQ(recv(pair[0], text, sizeof text, 0), 3); /* record borders are kept */
	CHECK_EQ(recv(pair[0], text, sizeof text, 0), 6);
	CHECK_EQ(send(pair[0], "done", 4, 0), 4);
	CHECK_EQ(recv(pair[0], text, sizeof text, 0), 0);
	ukl_wait_exit(child, 0);
	SYS(close(pair[0]));
	SYS(close(got));
	puts("socket pair: records, a passed descriptor");
}

static void named_socket(void)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	int listener = (int)SYS(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)), server;
	char path[256], text[8] = "";
	pid_t child;

	ukl_tmp(path, "socket");
	CHECK(strlen(path) < sizeof name.sun_path);
	strcpy(name.sun_path, path);
	SYS(bind(listener, (struct sockaddr *)&name, sizeof name));
	SYS(listen(listener, 4));
	child = (pid_t)SYS(fork());
	if (child == 0) {
		int client = (int)SYS(socket(AF_UNIX, SOCK_STREAM, 0));

		SYS(connect(client, (struct sockaddr *)&name, sizeof name));
		ukl_write_all(client, "hello", 5);
		ukl_read_all(client, text, 5);
		_exit(memcmp(text, "HELLO", 5) != 0);
	}
	server = (int)SYS(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
	ukl_read_all(server, text, 5);
	CHECK_STR(text, "hello");
	ukl_write_all(server, "HELLO", 5);
	ukl_wait_exit(child, 0);
	SYS(close(server));
	SYS(close(listener));
	SYS(unlink(path));
	puts("named socket: ok");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	ukl_begin("ipc");
	pipes();
	polling();
	epoll_modes();
	epoll_many();
	event_descriptors();
	interrupted_calls();
	restarted_calls();
	stopped_calls();
	masks();
	sockets();
	named_socket();
	return ukl_end();
}
