/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An echo server that asks for all that <ukl.h> has for a server: system calls that bypass, a thread that is not
 * preempted, TCP by its functions, and a buffer that never faults. The same program runs in ring 3.
 *
 *     echo         serve one connection on port 7 and end with it
 *     echo test    the same, with a client of its own on the loopback device
 */
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <ukl.h>
#include <unistd.h>

#define SIZE (64 << 10)
#define MESSAGES 1000

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* What the kernel does not have is done without. */
static void ask(const char *what, int result)
{
	if (result == 0)
		printf("%s: on\n", what);
	else if (errno == ENOSYS || errno == EOPNOTSUPP)
		printf("%s: not here\n", what);
	else
		die(what);
}

static long serve(int connection, char *buffer)
{
	long total = 0;

	for (;;) {
		ssize_t got = ukl_tcp_recv(connection, buffer, SIZE, 0), put;

		if (got == 0)
			return total;
		for (ssize_t at = 0; at < got; at += put)
			if ((put = ukl_tcp_send(connection, buffer + at, (size_t)(got - at), MSG_NOSIGNAL)) < 0)
				die("send");
		if (got < 0)
			die("receive");
		total += got;
	}
}

static void be_a_client(const struct sockaddr_in *name)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	char sent[32], back[32];

	if (fd < 0 || connect(fd, (const struct sockaddr *)name, sizeof *name) != 0)
		die("connect");
	for (int i = 0; i < MESSAGES; i++) {
		memset(sent, i, sizeof sent);
		if (send(fd, sent, sizeof sent, 0) != sizeof sent || recv(fd, back, sizeof back, MSG_WAITALL) != sizeof back)
			die("exchange");
		if (memcmp(sent, back, sizeof sent) != 0) {
			fprintf(stderr, "message %d came back another one\n", i);
			exit(1);
		}
	}
	exit(0);
}

static void loopback_up(int fd)
{
	struct ifreq request;

	memset(&request, 0, sizeof request);
	strcpy(request.ifr_name, "lo");
	if (ioctl(fd, SIOCGIFFLAGS, &request) != 0)
		die("lo");
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request) != 0)
		die("lo");
}

int main(int argc, char **argv)
{
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(7), .sin_addr.s_addr = htonl(INADDR_ANY)};
	int listener = socket(AF_INET, SOCK_STREAM, 0), connection, test = argc > 1 && strcmp(argv[1], "test") == 0, status = 0;
	char *buffer = ukl_pinned_alloc(SIZE);

	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	if (!buffer || listener < 0 || bind(listener, (struct sockaddr *)&name, sizeof name) != 0 || listen(listener, 8) != 0)
		die("start");
	if (test) {
		loopback_up(listener);
		name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		if (fork() == 0)
			be_a_client(&name);
	}
	printf("part of the kernel: %s\n", ukl_linked() ? "yes" : "no");
	ask("bypass", ukl_bypass(1));
	ask("run to completion", ukl_run_to_completion(1));
	connection = accept(listener, NULL, NULL);
	if (connection < 0)
		die("accept");
	printf("%ld bytes\n", serve(connection, buffer));
	ukl_pinned_free(buffer, SIZE);
	if (test && (wait(&status) < 0 || status != 0))
		return 1;
	return 0;
}
