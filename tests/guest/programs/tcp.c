/* SPDX-License-Identifier: Apache-2.0 */
/* TCP over loopback: echo of 10 MB by threads and by a non-blocking epoll server, shutdown, resets, many connections, UDP. */
#include "uklcheck.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define TOTAL (10u << 20)
#define CLIENTS 20

/* A bare guest may have loopback down; whoever runs a guest is root there. */
static void loopback_up(void)
{
	int fd = (int)SYS(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	struct ifreq request;

	memset(&request, 0, sizeof request);
	strcpy(request.ifr_name, "lo");
	SYS(ioctl(fd, SIOCGIFFLAGS, &request));
	if (!(request.ifr_flags & IFF_UP)) {
		request.ifr_flags |= IFF_UP;
		SYS(ioctl(fd, SIOCSIFFLAGS, &request));
	}
	SYS(close(fd));
}

static int listen_any(int flags, struct sockaddr_in *name)
{
	int fd = (int)SYS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
	socklen_t length = sizeof *name;

	memset(name, 0, sizeof *name);
	name->sin_family = AF_INET;
	name->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	SYS(bind(fd, (struct sockaddr *)name, sizeof *name));
	SYS(listen(fd, 64));
	SYS(getsockname(fd, (struct sockaddr *)name, &length));
	CHECK(name->sin_port != 0);
	return fd;
}

static int connect_to(const struct sockaddr_in *name)
{
	int fd = (int)SYS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), on = 1;

	SYS(connect(fd, (const struct sockaddr *)name, sizeof *name));
	SYS(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
	return fd;
}

static unsigned char pattern(uint32_t at)
{
	return (unsigned char)(at ^ at >> 8 ^ at >> 16);
}

/* Send ``total`` bytes of the pattern in uneven pieces and close the sending side. */
struct sending {
	int fd;
	uint32_t total;
};

static void *send_pattern(void *argument)
{
	const struct sending *job = argument;
	unsigned char block[30000];
	uint64_t state = job->total;

	ukl_check_mode();
	for (uint32_t sent = 0; sent < job->total;) {
		uint32_t chunk = 1 + (uint32_t)(ukl_random(&state) % sizeof block);

		if (chunk > job->total - sent)
			chunk = job->total - sent;
		for (uint32_t i = 0; i < chunk; i++)
			block[i] = pattern(sent + i);
		ukl_write_all(job->fd, block, chunk);
		sent += chunk;
	}
	SYS(shutdown(job->fd, SHUT_WR));
	return NULL;
}

static uint64_t receive_pattern(int fd, uint32_t total)
{
	static __thread unsigned char block[50000];
	uint64_t hash = 0;
	uint32_t seen = 0;

	for (;;) {
		ssize_t got = read(fd, block, sizeof block);

		if (got == -1 && errno == EINTR)
			continue;
		CHECK(got >= 0);
		if (got == 0)
			break;
		for (ssize_t i = 0; i < got; i++)
			CHECK(block[i] == pattern(seen + (uint32_t)i));
		hash = ukl_hash(hash, block, (size_t)got);
		seen += (uint32_t)got;
	}
	CHECK_EQ(seen, total);
	return hash;
}

/* A blocking echo server for one connection. */
static void *echo_once(void *argument)
{
	int fd = (int)SYS(accept4(*(int *)argument, NULL, NULL, SOCK_CLOEXEC));
	char block[20000];
	ssize_t got;

	ukl_check_mode();
	while ((got = SYS(recv(fd, block, sizeof block, 0))) > 0)
		ukl_write_all(fd, block, (size_t)got);
	SYS(shutdown(fd, SHUT_WR));
	SYS(close(fd));
	return NULL;
}

static void blocking_echo(void)
{
	struct sockaddr_in name;
	int listener = listen_any(0, &name), fd;
	pthread_t server, sender;
	struct sending job;
	uint64_t hash;

	CHECK_OK(pthread_create(&server, NULL, echo_once, &listener));
	fd = connect_to(&name);
	job = (struct sending){fd, TOTAL};
	CHECK_OK(pthread_create(&sender, NULL, send_pattern, &job));
	hash = receive_pattern(fd, TOTAL);
	CHECK_OK(pthread_join(sender, NULL));
	CHECK_OK(pthread_join(server, NULL));
	SYS(close(fd));
	SYS(close(listener));
	printf("echo by threads: %u bytes, hash %016llx\n", TOTAL, (unsigned long long)hash);
}

/* A non-blocking echo server: what cannot be sent yet waits in the connection's buffer. */
struct connection {
	int fd, ended;
	size_t start, end;
	char buffer[16384];
};

static void watch(int epoll, int operation, struct connection *connection)
{
	struct epoll_event event = {.events = 0, .data.ptr = connection};

	if (connection->end < sizeof connection->buffer && !connection->ended)
		event.events |= EPOLLIN;
	if (connection->start < connection->end)
		event.events |= EPOLLOUT;
	SYS(epoll_ctl(epoll, operation, connection->fd, &event));
}

/* Returns 1 when the connection is done. */
static int serve(struct connection *connection)
{
	ssize_t got, put;

	if (!connection->ended && connection->end < sizeof connection->buffer) {
		got = recv(connection->fd, connection->buffer + connection->end, sizeof connection->buffer - connection->end, 0);
		if (got == 0)
			connection->ended = 1;
		else if (got > 0)
			connection->end += (size_t)got;
		else
			CHECK(errno == EAGAIN);
	}
	if (connection->start < connection->end) {
		put = send(connection->fd, connection->buffer + connection->start, connection->end - connection->start, MSG_NOSIGNAL);
		if (put > 0)
			connection->start += (size_t)put;
		else
			CHECK(errno == EAGAIN);
	}
	if (connection->start == connection->end)
		connection->start = connection->end = 0;
	return connection->ended && connection->end == 0;
}

static void accept_all(int epoll, int listener)
{
	for (;;) {
		struct connection *connection;
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd == -1) {
			CHECK_EQ(errno, EAGAIN);
			return;
		}
		connection = calloc(1, sizeof *connection);
		CHECK(connection != NULL);
		connection->fd = fd;
		watch(epoll, EPOLL_CTL_ADD, connection);
	}
}

static void *epoll_server(void *argument)
{
	int listener = *(int *)argument, epoll = (int)SYS(epoll_create1(EPOLL_CLOEXEC)), done = 0;
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[16];

	SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event));
	while (done < CLIENTS) {
		int ready = (int)SYS(epoll_wait(epoll, events, 16, 120000));

		CHECK(ready > 0);
		for (int i = 0; i < ready; i++) {
			struct connection *connection = events[i].data.ptr;

			if (!connection) {
				accept_all(epoll, listener);
			} else if (serve(connection)) {
				SYS(close(connection->fd));
				free(connection);
				done++;
			} else {
				watch(epoll, EPOLL_CTL_MOD, connection);
			}
		}
	}
	SYS(close(epoll));
	return NULL;
}

static void *epoll_client(void *argument)
{
	int fd = connect_to(argument);
	struct sending job = {fd, TOTAL / CLIENTS};
	pthread_t sender;
	uint64_t hash;

	CHECK_OK(pthread_create(&sender, NULL, send_pattern, &job));
	hash = receive_pattern(fd, job.total);
	CHECK_OK(pthread_join(sender, NULL));
	SYS(close(fd));
	return (void *)(uintptr_t)hash;
}

static void epoll_echo(void)
{
	struct sockaddr_in name;
	int listener = listen_any(SOCK_NONBLOCK, &name);
	pthread_t server, client[CLIENTS];
	uint64_t first = 0;

	CHECK_OK(pthread_create(&server, NULL, epoll_server, &listener));
	for (int i = 0; i < CLIENTS; i++)
		CHECK_OK(pthread_create(&client[i], NULL, epoll_client, &name));
	for (int i = 0; i < CLIENTS; i++) {
		void *hash;

		CHECK_OK(pthread_join(client[i], &hash));
		if (i == 0)
			first = (uintptr_t)hash;
		CHECK((uintptr_t)hash == first);
	}
	CHECK_OK(pthread_join(server, NULL));
	SYS(close(listener));
	printf("echo by epoll, %d clients at once: hash %016llx\n", CLIENTS, (unsigned long long)first);
}

static void many_connections(void)
{
	struct sockaddr_in name;
	int listener = listen_any(0, &name);

	for (int i = 0; i < 300; i++) {
		int client = connect_to(&name), server = (int)SYS(accept4(listener, NULL, NULL, 0)), value = 0;

		ukl_write_all(client, &i, sizeof i);
		ukl_read_all(server, &value, sizeof value);
		CHECK_EQ(value, i);
		SYS(close(server));
		CHECK_EQ(read(client, &value, sizeof value), 0);
		SYS(close(client));
	}
	SYS(close(listener));
	puts("300 connections in turn: ok");
}

static void endings(void)
{
	struct linger reset = {1, 0};
	struct sockaddr_in name, closed;
	int listener = listen_any(0, &name), other = listen_any(0, &closed), client, server;
	char block[64];

	/* Half-closed: one direction ends, the other goes on. */
	client = connect_to(&name);
	server = (int)SYS(accept4(listener, NULL, NULL, 0));
	SYS(shutdown(client, SHUT_WR));
	CHECK_EQ(read(server, block, sizeof block), 0);
	ukl_write_all(server, "still", 5);
	ukl_read_all(client, block, 5);
	ukl_handle(SIGPIPE, SIG_IGN, 0);
	CHECK_FAILS(send(client, "x", 1, 0), EPIPE);
	SYS(close(server));
	SYS(close(client));

	/* Reset. */
	client = connect_to(&name);
	server = (int)SYS(accept4(listener, NULL, NULL, 0));
	SYS(setsockopt(server, SOL_SOCKET, SO_LINGER, &reset, sizeof reset));
	SYS(close(server));
	CHECK_FAILS(read(client, block, sizeof block), ECONNRESET);
	SYS(close(client));

	/* Refused. */
	SYS(close(other));
	client = (int)SYS(socket(AF_INET, SOCK_STREAM, 0));
	CHECK_FAILS(connect(client, (struct sockaddr *)&closed, sizeof closed), ECONNREFUSED);
	SYS(close(client));
	SYS(close(listener));
	puts("half-close, reset, refused: ok");
}

static void nonblocking_connect(void)
{
	struct timeval little = {0, 30000};
	struct sockaddr_in name;
	int listener = listen_any(0, &name), client = (int)SYS(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)), error = -1, server;
	socklen_t length = sizeof error;
	struct pollfd ready = {client, POLLOUT, 0};
	char byte;

	if (connect(client, (struct sockaddr *)&name, sizeof name) != 0)
		CHECK_EQ(errno, EINPROGRESS);
	CHECK_EQ(poll(&ready, 1, 10000), 1);
	SYS(getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &length));
	CHECK_EQ(error, 0);
	CHECK_FAILS(recv(client, &byte, 1, 0), EAGAIN);
	server = (int)SYS(accept4(listener, NULL, NULL, 0));
	SYS(setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &little, sizeof little));
	CHECK_FAILS(recv(server, &byte, 1, 0), EAGAIN);
	SYS(close(client));
	SYS(close(server));
	SYS(close(listener));
	puts("non-blocking connect, receive time-out: ok");
}

/* sendfile and vectors from static buffers. */
static void vectors(void)
{
	static char head[] = "head ", middle[70000], tail[] = " tail";
	static char room[2][40000];
	struct iovec out[3] = {{head, 5}, {middle, sizeof middle}, {tail, 5}}, in[2] = {{room[0], 40000}, {room[1], 40000}};
	struct msghdr message = {.msg_iov = in, .msg_iovlen = 2};
	struct sockaddr_in name;
	int listener = listen_any(0, &name), client = connect_to(&name), server = (int)SYS(accept4(listener, NULL, NULL, 0)), fd;
	char path[256];

	memset(middle, 'm', sizeof middle);
	CHECK_EQ(writev(client, out, 3), 70010);
	SYS(close(client));
	CHECK_EQ(recvmsg(server, &message, MSG_WAITALL), 70010);
	CHECK_EQ(memcmp(room[0], "head m", 6), 0);
	CHECK_EQ(memcmp(room[1] + 70010 - 40000 - 6, "m tail", 6), 0);
	SYS(close(server));

	fd = (int)SYS(open(ukl_tmp(path, "tcp"), O_RDWR | O_CREAT | O_EXCL, 0600));
	SYS(unlink(path));
	ukl_write_all(fd, middle, sizeof middle);
	client = connect_to(&name);
	server = (int)SYS(accept4(listener, NULL, NULL, 0));
	for (off_t at = 0; at < (off_t)sizeof middle;)
		CHECK(SYS(sendfile(client, fd, &at, 10000)) > 0);
	SYS(shutdown(client, SHUT_WR));
	memset(middle, 0, sizeof middle);
	ukl_read_all(server, middle, sizeof middle);
	for (size_t i = 0; i < sizeof middle; i++)
		CHECK(middle[i] == 'm');
	SYS(close(client));
	SYS(close(server));
	SYS(close(listener));
	SYS(close(fd));
	puts("writev, recvmsg, sendfile: ok");
}

static void datagrams(void)
{
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int a = (int)SYS(socket(AF_INET, SOCK_DGRAM, 0)), b = (int)SYS(socket(AF_INET, SOCK_DGRAM, 0));
	socklen_t length = sizeof name;
	char text[2000];

	SYS(bind(a, (struct sockaddr *)&name, sizeof name));
	SYS(getsockname(a, (struct sockaddr *)&name, &length));
	for (int i = 1; i <= 200; i++) {
		memset(text, i, sizeof text);
		CHECK_EQ(sendto(b, text, (size_t)i * 5, 0, (struct sockaddr *)&name, sizeof name), i * 5);
		memset(text, 0, sizeof text);
		CHECK_EQ(recv(a, text, sizeof text, 0), i * 5);
		CHECK(text[i * 5 - 1] == (char)i && text[i * 5] == 0);
	}
	SYS(close(a));
	SYS(close(b));
	puts("UDP: 200 datagrams");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	ukl_begin("tcp");
	loopback_up();
	blocking_echo();
	epoll_echo();
	many_connections();
	endings();
	nonblocking_connect();
	vectors();
	datagrams();
	return ukl_end();
}
