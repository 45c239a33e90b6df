/* SPDX-License-Identifier: Apache-2.0 */
/*
 * read, write, recvfrom and sendto, on TCP sockets and on everything else: what a shorter way to TCP must not change.
 * Errors and their order, flags, signals and restarts, time limits, addresses, descriptors that others close meanwhile.
 */
#include "uklcheck.h"

#include <arpa/inet.h>
#include <linux/tls.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>

#define ROUNDS 3000
#define KERNEL_ADDRESS ((void *)0xffff888000001000UL)

static volatile sig_atomic_t signals;

static void count(int number UKL_UNUSED)
{
	signals++;
}

static void loopback_up(void)
{
	int fd = (int)SYS(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	struct ifreq request;

	memset(&request, 0, sizeof request);
	strcpy(request.ifr_name, "lo");
	SYS(ioctl(fd, SIOCGIFFLAGS, &request));
	request.ifr_flags |= IFF_UP;
	SYS(ioctl(fd, SIOCSIFFLAGS, &request));
	SYS(close(fd));
}

/* Two ends of a TCP connection over loopback. */
static void tcp_pair(int family, int protocol, int ends[2])
{
	int listener = (int)SYS(socket(family, SOCK_STREAM | SOCK_CLOEXEC, protocol)), on = 1;
	struct sockaddr_in6 name;
	socklen_t length = sizeof name;

	memset(&name, 0, sizeof name);
	if (family == AF_INET6) {
		name.sin6_family = AF_INET6;
		name.sin6_addr = in6addr_loopback;
	} else {
		((struct sockaddr_in *)&name)->sin_family = AF_INET;
		((struct sockaddr_in *)&name)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
	SYS(bind(listener, (struct sockaddr *)&name, sizeof name));
	SYS(listen(listener, 4));
	SYS(getsockname(listener, (struct sockaddr *)&name, &length));
	ends[0] = (int)SYS(socket(family, SOCK_STREAM | SOCK_CLOEXEC, protocol));
	SYS(connect(ends[0], (struct sockaddr *)&name, length));
	ends[1] = (int)SYS(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
	SYS(setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
	SYS(setsockopt(ends[1], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
	SYS(close(listener));
}

static void close_pair(int ends[2])
{
	SYS(close(ends[0]));
	SYS(close(ends[1]));
}

static void wait_readable(int fd)
{
	struct pollfd ready = {fd, POLLIN, 0};

	CHECK_EQ(poll(&ready, 1, 30000), 1);
}

/* All ways to send and to receive, with the flags that TCP knows. */
static void transfers(int a, int b)
{
	static char big[300000], room[300000];
	char text[16];

	CHECK_EQ(write(a, "0123456789", 10), 10);
	CHECK_EQ(recv(b, text, 4, MSG_PEEK), 4);
	CHECK_EQ(memcmp(text, "0123", 4), 0);
	CHECK_EQ(read(b, text, 2), 2);
	CHECK_EQ(memcmp(text, "01", 2), 0);
	CHECK_EQ(recv(b, NULL, 3, MSG_TRUNC), 3);
	CHECK_EQ(recvfrom(b, text, sizeof text, 0, NULL, NULL), 5);
	CHECK_EQ(memcmp(text, "56789", 5), 0);

	CHECK_EQ(write(a, text, 0), 0);
	CHECK_EQ(send(a, text, 0, 0), 0);
	CHECK_EQ(read(b, text, 0), 0);
	CHECK_FAILS(recv(b, text, sizeof text, MSG_DONTWAIT), EAGAIN);
	/* What MSG_MORE holds back comes with the next. */
	CHECK_EQ(send(a, "ab", 2, MSG_MORE), 2);
	CHECK_EQ(send(a, "cd", 2, MSG_EOR), 2);
	CHECK_EQ(recv(b, text, 4, MSG_WAITALL), 4);
	CHECK_EQ(memcmp(text, "abcd", 4), 0);
	/* Flags that are the kernel's own (MSG_SPLICE_PAGES) do nothing: what was sent is what was there then. */
	memcpy(big, "efgh", 4);
	CHECK_EQ(send(a, big, 4, 0x8000000), 4);
	memset(big, 0, 4);
	CHECK_EQ(recv(b, text, 4, MSG_WAITALL), 4);
	CHECK_EQ(memcmp(text, "efgh", 4), 0);
	/* A byte out of band, and one in band. */
	CHECK_EQ(send(a, "u", 1, MSG_OOB), 1);
	CHECK_EQ(send(a, "n", 1, 0), 1);
	wait_readable(b);
	CHECK_EQ(recv(b, text, 1, MSG_OOB), 1);
	CHECK_EQ(text[0], 'u');
	CHECK_EQ(recv(b, text, sizeof text, 0), 1);
	CHECK_EQ(text[0], 'n');
	CHECK_FAILS(recv(b, text, 1, MSG_OOB), EINVAL);
	CHECK_FAILS(recv(b, text, 1, MSG_ERRQUEUE | MSG_DONTWAIT), EAGAIN);

	for (size_t i = 0; i < sizeof big; i++)
		big[i] = (char)(i * 7);
	for (size_t sent = 0, seen = 0; seen < sizeof big;) {
		ssize_t put = sent < sizeof big ? send(a, big + sent, sizeof big - sent, MSG_DONTWAIT) : 0, got;

		CHECK(put >= 0 || errno == EAGAIN);
		sent += put > 0 ? (size_t)put : 0;
		got = read(b, room + seen, sizeof room - seen);
		CHECK(got > 0);
		seen += (size_t)got;
	}
	CHECK_EQ(memcmp(big, room, sizeof big), 0);
}

static void addresses(int a, int b)
{
	struct sockaddr_storage name;
	struct sockaddr_in other = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof name;
	char byte;

	/* A connected socket ignores where one wants to send, and TCP does not say from where. */
	CHECK_EQ(sendto(a, "x", 1, 0, (struct sockaddr *)&other, sizeof other), 1);
	CHECK_EQ(recvfrom(b, &byte, 1, 0, (struct sockaddr *)&name, &length), 1);
	CHECK_EQ(length, 0);
	CHECK_FAILS(sendto(a, "x", 1, 0, (struct sockaddr *)8, 16), EFAULT);
	CHECK_FAILS(sendto(a, "x", 1, 0, (struct sockaddr *)&other, 1000), EINVAL);
}

/* Which error, when there are several reasons, is part of the interface. */
static void bad_buffers(int a, int b)
{
	char byte = 0;

	for (int data = 0; data < 2; data++) {
		if (data)
			CHECK_EQ(send(a, "x", 1, 0), 1);
		CHECK_FAILS(recv(b, KERNEL_ADDRESS, 1, MSG_DONTWAIT), EFAULT);
		CHECK_FAILS(syscall(SYS_read, b, KERNEL_ADDRESS, 1), EFAULT);
		CHECK_FAILS(syscall(SYS_read, b, &byte, SIZE_MAX), EFAULT);
		CHECK_FAILS(syscall(SYS_read, b, &byte, (size_t)1 << 63), EFAULT);
	}
	/* It was not lost. */
	CHECK_FAILS(syscall(SYS_read, b, 8, 1), EFAULT);
	CHECK_EQ(read(b, &byte, 1), 1);
	CHECK_EQ(byte, 'x');
	CHECK_FAILS(syscall(SYS_write, a, KERNEL_ADDRESS, 1), EFAULT);
	CHECK_FAILS(syscall(SYS_write, a, 8, 1), EFAULT);
	CHECK_FAILS(send(a, (void *)8, 1, 0), EFAULT);
	CHECK_FAILS(syscall(SYS_write, a, &byte, SIZE_MAX), EFAULT);
	CHECK_FAILS(send(-1, KERNEL_ADDRESS, 1, 0), EFAULT);
	CHECK_FAILS(syscall(SYS_write, -1, KERNEL_ADDRESS, 1), EBADF);
	CHECK_FAILS(pread(b, &byte, 1, 0), ESPIPE);
	CHECK_FAILS(recv(b, &byte, 1, MSG_DONTWAIT), EAGAIN);
}

static void not_connected(void)
{
	int fd = (int)SYS(socket(AF_INET, SOCK_STREAM, 0)), ends[2];
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	char byte;

	ukl_handle(SIGPIPE, count, 0);
	signals = 0;
	CHECK_FAILS(read(fd, &byte, 1), ENOTCONN);
	CHECK_FAILS(write(fd, &byte, 1), EPIPE);
	CHECK_EQ(signals, 1);
	CHECK_FAILS(send(fd, &byte, 1, MSG_NOSIGNAL), EPIPE);
	CHECK_EQ(signals, 1);
	SYS(bind(fd, (struct sockaddr *)&name, sizeof name));
	SYS(listen(fd, 1));
	CHECK_FAILS(recv(fd, &byte, 1, 0), ENOTCONN);
	SYS(close(fd));

	/* Shut down, by oneself and by the other. */
	tcp_pair(AF_INET, 0, ends);
	SYS(shutdown(ends[0], SHUT_WR));
	CHECK_EQ(read(ends[1], &byte, 1), 0);
	CHECK_EQ(recv(ends[1], &byte, 1, 0), 0);
	CHECK_FAILS(write(ends[0], &byte, 1), EPIPE);
	CHECK_EQ(signals, 2);
	CHECK_EQ(write(ends[1], "y", 1), 1);
	CHECK_EQ(read(ends[0], &byte, 1), 1);
	SYS(shutdown(ends[0], SHUT_RD));
	CHECK_EQ(read(ends[0], &byte, 1), 0);
	close_pair(ends);
	ukl_handle(SIGPIPE, SIG_DFL, 0);
	puts("not connected, shut down: ok");
}

/* Sends again and again until there is no room: what is under way makes some, now and then. */
#define FULL(call)                                                                                                         \
	do {                                                                                                               \
		while ((call) > 0)                                                                                         \
			;                                                                                                  \
		CHECK_EQ(errno, EAGAIN);                                                                                   \
	} while (0)

static void nonblocking_and_limits(void)
{
	struct timeval little = {0, 20000}, none = {0, 0};
	static char block[1 << 16];
	int ends[2], flags, size = 65536;
	char byte = 0;

	tcp_pair(AF_INET, 0, ends);
	/* Sizes that were set do not grow. */
	SYS(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
	SYS(setsockopt(ends[1], SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
	SYS(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &little, sizeof little));
	SYS(setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &little, sizeof little));
	CHECK_FAILS(read(ends[0], &byte, 1), EAGAIN);
	CHECK_FAILS(recv(ends[0], &byte, 1, 0), EAGAIN);
	FULL(write(ends[0], block, sizeof block));
	FULL(send(ends[0], block, sizeof block, 0));
	SYS(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none));
	SYS(setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none));
	/* The flag is the file's and counts from the next call on. */
	flags = (int)SYS(fcntl(ends[0], F_GETFL));
	SYS(fcntl(ends[0], F_SETFL, flags | O_NONBLOCK));
	FULL(write(ends[0], block, sizeof block));
	CHECK_FAILS(read(ends[0], &byte, 1), EAGAIN);
	CHECK_FAILS(recvfrom(ends[0], &byte, 1, 0, NULL, NULL), EAGAIN);
	FULL(sendto(ends[0], block, sizeof block, 0, NULL, 0));
	close_pair(ends);
	puts("time limits, non-blocking: ok");
}

/* Signals while a call waits. The other end writes when the handler has run. */
static int wake_fd;

static void write_one(int number UKL_UNUSED)
{
	signals++;
	if (write(wake_fd, "s", 1) != 1)
		_exit(UKL_EXIT_CHECK);
}

static void in_a_little(void)
{
	struct itimerval once = {{0, 0}, {0, 30000}};

	SYS(setitimer(ITIMER_REAL, &once, NULL));
}

static void signals_while_waiting(void)
{
	struct timeval limit = {20, 0};
	int ends[2];
	char byte;

	tcp_pair(AF_INET, 0, ends);
	wake_fd = ends[1];
	signals = 0;
	for (int how = 0; how < 2; how++) {
		/* Restarted, and there is what the handler wrote. */
		ukl_handle(SIGALRM, write_one, SA_RESTART);
		in_a_little();
		byte = 0;
		CHECK_EQ(how ? recv(ends[0], &byte, 1, 0) : read(ends[0], &byte, 1), 1);
		CHECK_EQ(byte, 's');
		/* Not restarted. */
		ukl_handle(SIGALRM, count, 0);
		in_a_little();
		CHECK_FAILS(how ? recv(ends[0], &byte, 1, 0) : read(ends[0], &byte, 1), EINTR);
		/* Never restarted: with a time limit. */
		SYS(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
		ukl_handle(SIGALRM, count, SA_RESTART);
		in_a_little();
		CHECK_FAILS(how ? recv(ends[0], &byte, 1, 0) : read(ends[0], &byte, 1), EINTR);
		limit.tv_sec = 0;
		SYS(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
		limit.tv_sec = 20;
	}
	CHECK_EQ(signals, 6);
	close_pair(ends);
	puts("signals while waiting: ok");
}

/* Nothing but TCP goes the short way. */
static void other_descriptors(void)
{
	struct sockaddr_un from, name = {.sun_family = AF_UNIX, .sun_path = "\0uklcheck-shortcut"};
	struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, sender;
	int pair[2], fd, other;
	socklen_t length = sizeof where;
	uint64_t value = 5;
	char text[16], path[256];

	SYS(pipe(pair));
	CHECK_EQ(write(pair[1], "pipe", 4), 4);
	CHECK_EQ(read(pair[0], text, sizeof text), 4);
	CHECK_FAILS(send(pair[1], "x", 1, 0), ENOTSOCK);
	CHECK_FAILS(recv(pair[0], text, 1, 0), ENOTSOCK);
	CHECK_FAILS(write(pair[0], "x", 1), EBADF);
	CHECK_FAILS(read(pair[1], text, 1), EBADF);
	close_pair(pair);
	CHECK_FAILS(read(pair[0], text, 1), EBADF);
	CHECK_FAILS(recv(pair[0], text, 1, 0), EBADF);
	CHECK_FAILS(syscall(SYS_read, 0x100000000L + 100000, text, 1L), EBADF);

	/* A file's position moves, and its descriptors share it. */
	fd = (int)SYS(open(ukl_tmp(path, "shortcut"), O_RDWR | O_CREAT | O_EXCL, 0600));
	other = (int)SYS(dup(fd));
	SYS(unlink(path));
	CHECK_EQ(write(fd, "abcdef", 6), 6);
	CHECK_EQ(write(other, "ghi", 3), 3);
	CHECK_EQ(lseek(fd, 2, SEEK_SET), 2);
	CHECK_EQ(read(other, text, 3), 3);
	CHECK_EQ(memcmp(text, "cde", 3), 0);
	CHECK_EQ(lseek(fd, 0, SEEK_CUR), 5);
	CHECK_FAILS(syscall(SYS_read, fd, KERNEL_ADDRESS, 1), EFAULT);
	CHECK_EQ(lseek(fd, 0, SEEK_CUR), 5);
	SYS(fcntl(fd, F_SETFL, O_APPEND));
	CHECK_EQ(write(fd, "!", 1), 1);
	CHECK_EQ(lseek(fd, 0, SEEK_CUR), 10);
	close_pair((int[]){fd, other});
	fd = (int)SYS(open("/", O_RDONLY | O_DIRECTORY));
	CHECK_FAILS(read(fd, text, 1), EISDIR);
	SYS(close(fd));
	fd = (int)SYS(open("/", O_PATH));
	CHECK_FAILS(read(fd, text, 1), EBADF);
	SYS(close(fd));
	fd = (int)SYS(eventfd(0, 0));
	CHECK_EQ(write(fd, &value, sizeof value), 8);
	value = 0;
	CHECK_EQ(read(fd, &value, sizeof value), 8);
	CHECK_EQ(value, 5);
	CHECK_FAILS(read(fd, &value, 4), EINVAL);
	SYS(close(fd));

	SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	CHECK_EQ(send(pair[0], "packet", 6, 0), 6);
	CHECK_EQ(write(pair[0], "second", 6), 6);
	CHECK_EQ(recv(pair[1], text, 3, MSG_TRUNC), 6);
	CHECK_EQ(read(pair[1], text, sizeof text), 6);
	close_pair(pair);
	pair[0] = (int)SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
	length = sizeof(sa_family_t) + 18;
	SYS(bind(pair[0], (struct sockaddr *)&name, length));
	pair[1] = (int)SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
	CHECK_EQ(sendto(pair[1], "unix", 4, 0, (struct sockaddr *)&name, length), 4);
	length = sizeof from;
	CHECK_EQ(recvfrom(pair[0], text, sizeof text, 0, (struct sockaddr *)&from, &length), 4);
	close_pair(pair);

	pair[0] = (int)SYS(socket(AF_INET, SOCK_DGRAM, 0));
	SYS(bind(pair[0], (struct sockaddr *)&where, sizeof where));
	length = sizeof where;
	SYS(getsockname(pair[0], (struct sockaddr *)&where, &length));
	pair[1] = (int)SYS(socket(AF_INET, SOCK_DGRAM, 0));
	CHECK_FAILS(send(pair[1], "x", 1, 0), EDESTADDRREQ);
	CHECK_EQ(sendto(pair[1], "datagram", 8, 0, (struct sockaddr *)&where, sizeof where), 8);
	length = sizeof sender;
	CHECK_EQ(recvfrom(pair[0], text, 4, 0, (struct sockaddr *)&sender, &length), 4);
	CHECK_EQ(length, sizeof sender);
	CHECK_EQ(sender.sin_family, AF_INET);
	close_pair(pair);
	puts("other descriptors: ok");
}

/* Where the kernel has them. Both keep TCP's file operations and have a protocol of their own. */
static void on_top_of_tcp(void)
{
	struct tls12_crypto_info_aes_gcm_128 keys;
	int ends[2], fd = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
	char text[32];

	if (fd != -1) {
		SYS(close(fd));
		tcp_pair(AF_INET, IPPROTO_MPTCP, ends);
		CHECK_EQ(write(ends[0], "many paths", 10), 10);
		CHECK_EQ(recv(ends[1], text, sizeof text, 0), 10);
		CHECK_EQ(send(ends[1], "back", 4, 0), 4);
		CHECK_EQ(read(ends[0], text, sizeof text), 4);
		close_pair(ends);
	}
	tcp_pair(AF_INET, 0, ends);
	if (setsockopt(ends[0], IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") == 0) {
		SYS(setsockopt(ends[1], IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls"));
		memset(&keys, 0x5a, sizeof keys);
		keys.info.version = TLS_1_2_VERSION;
		keys.info.cipher_type = TLS_CIPHER_AES_GCM_128;
		SYS(setsockopt(ends[0], SOL_TLS, TLS_TX, &keys, sizeof keys));
		/* Encrypted: what comes is a record of TLS, five bytes of head and more than was sent. */
		CHECK_EQ(write(ends[0], "secret", 6), 6);
		CHECK_EQ(send(ends[0], "secret", 6, 0), 6);
		SYS(setsockopt(ends[1], SOL_TLS, TLS_RX, &keys, sizeof keys));
		CHECK_EQ(read(ends[1], text, 6), 6);
		CHECK_EQ(memcmp(text, "secret", 6), 0);
		CHECK_EQ(recv(ends[1], text, 6, 0), 6);
		CHECK_EQ(memcmp(text, "secret", 6), 0);
	}
	close_pair(ends);
	puts("what is on top of TCP: ok");
}

/* A number that is closed and used again, also while a thread waits with it. */
struct waiting {
	int fd;
	char byte;
};

static void *receive_one(void *argument)
{
	struct waiting *job = argument;

	CHECK_EQ(recv(job->fd, &job->byte, 1, 0), 1);
	return NULL;
}

static void *reads_and_writes(void *argument)
{
	int *ends = argument;
	char text[8];

	for (int i = 0; i < ROUNDS; i++) {
		ukl_write_all(ends[0], &i, sizeof i);
		ukl_read_all(ends[1], text, sizeof i);
		CHECK_EQ(memcmp(text, &i, sizeof i), 0);
	}
	return NULL;
}

static void closed_and_used_again(void)
{
	struct waiting job;
	pthread_t thread[3];
	int ends[2], pipes[2], two[3][2];
	char byte;

	tcp_pair(AF_INET, 0, ends);
	SYS(pipe(pipes));
	job = (struct waiting){ends[0], 0};
	CHECK_OK(pthread_create(&thread[0], NULL, receive_one, &job));
	ukl_sleep_ms(50);
	/* The number is the pipe's from now on; the thread still waits for the connection. */
	SYS(dup2(pipes[0], ends[0]));
	CHECK_EQ(write(pipes[1], "p", 1), 1);
	CHECK_EQ(read(ends[0], &byte, 1), 1);
	CHECK_EQ(byte, 'p');
	CHECK_EQ(write(ends[1], "c", 1), 1);
	CHECK_OK(pthread_join(thread[0], NULL));
	CHECK_EQ(job.byte, 'c');
	/* That was the connection's last use, so its other end sees the end. */
	CHECK_EQ(read(ends[1], &byte, 1), 0);
	close_pair(ends);
	close_pair(pipes);

	/* References that were not given back would keep a connection open. */
	for (int i = 0; i < 3; i++) {
		tcp_pair(AF_INET, 0, two[i]);
		CHECK_OK(pthread_create(&thread[i], NULL, reads_and_writes, two[i]));
	}
	for (int i = 0; i < 3; i++)
		CHECK_OK(pthread_join(thread[i], NULL));
	for (int i = 0; i < 3; i++) {
		SYS(close(two[i][0]));
		CHECK_EQ(read(two[i][1], &byte, 1), 0);
		SYS(close(two[i][1]));
	}
	puts("closed and used again: ok");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	int ends[2], families[] = {AF_INET, AF_INET6};

	ukl_begin("shortcut");
	loopback_up();
	for (int i = 0; i < 2; i++) {
		tcp_pair(families[i], 0, ends);
		transfers(ends[0], ends[1]);
		addresses(ends[0], ends[1]);
		bad_buffers(ends[0], ends[1]);
		close_pair(ends);
	}
	puts("transfers, addresses, buffers: ok");
	not_connected();
	nonblocking_and_limits();
	signals_while_waiting();
	other_descriptors();
	on_top_of_tcp();
	closed_and_used_again();
	return ukl_end();
}
