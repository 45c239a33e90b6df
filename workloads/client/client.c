/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client for Redis and memcached that does the same each time, an ordinary process beside the server:
 *
 *     client redis|memcached PORT CASE...         CASE is set|get/CONNECTIONS/PIPELINE/REQUESTS
 *
 * In turn, PIPELINE requests go out on each connection, and then each one's replies are read and compared. So the server
 * finds many connections ready at once, as it does under load. Beside `bench` lines, whose samples are the time from a
 * connection's requests to its replies, it prints
 *
 *     bench-cost <case> server <nanoseconds of the server's processor time> <requests>
 *     bench-cost <case> all <ticks from the first request to the last reply> <requests>
 *
 * UKLIMG_PID says which process the server is (uklimg/guest/protocol.py).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../bench.h"

#define MOST_CONNECTIONS 256
#define MOST_PIPELINE 64
#define LONGEST 128
#define TRIES 6000 /* of 10 ms */

struct exchange {
	const char *operation, *request, *reply;
};

static const struct exchange redis[] = {
	{ "set", "*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000000\r\n$3\r\nxxx\r\n", "+OK\r\n" },
	{ "get", "*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000000\r\n", "$3\r\nxxx\r\n" },
	{ 0 },
};
static const struct exchange memcached[] = {
	{ "set", "set key:000000000000 0 0 3\r\nxxx\r\n", "STORED\r\n" },
	{ "get", "get key:000000000000\r\n", "VALUE key:000000000000 0 3\r\nxxx\r\nEND\r\n" },
	{ 0 },
};

static int connections[MOST_CONNECTIONS];
static uint64_t sent[MOST_CONNECTIONS], *sample;
static clockid_t server;

static int connect_to(int port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr = { htonl(INADDR_LOOPBACK) },
	};
	int on = 1;

	for (int n = 0; n < TRIES; n++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		if (fd < 0)
			bench_die("socket");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
			return fd;
		if (errno != ECONNREFUSED)
			bench_die("connect");
		close(fd);
		usleep(10000);
	}
	bench_die("connect");
	return -1;
}

static void receive(int fd, const char *wanted, size_t length)
{
	char got[MOST_PIPELINE * LONGEST];
	size_t at = 0;

	while (at < length) {
		ssize_t more = read(fd, got + at, length - at);

		if (more <= 0)
			bench_die("the server's reply");
		at += more;
	}
	if (memcmp(got, wanted, length) != 0) {
		fprintf(stderr, "client: the server answered %.*s\n", (int)length, got);
		exit(1);
	}
}

static uint64_t server_time(void)
{
	struct timespec time;

	if (clock_gettime(server, &time) != 0)
		bench_die("the server's processor time");
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void repeat(char *to, const char *text, unsigned times)
{
	for (*to = '\0'; times; times--)
		to = stpcpy(to, text);
}

/* At least so many requests, in whole rounds; returns how many they were. */
static unsigned exchange(const struct exchange *what, unsigned count, unsigned pipeline, unsigned requests)
{
	static char request[MOST_PIPELINE * LONGEST], reply[MOST_PIPELINE * LONGEST];
	unsigned done = 0, batches = 0;
	size_t length, wanted;

	repeat(request, what->request, pipeline);
	repeat(reply, what->reply, pipeline);
	length = strlen(request);
	wanted = strlen(reply);
	while (done < requests) {
		for (unsigned n = 0; n < count; n++) {
			sent[n] = bench_now();
			if (write(connections[n], request, length) != (ssize_t)length)
				bench_die("write");
		}
		for (unsigned n = 0; n < count; n++) {
			receive(connections[n], reply, wanted);
			sample[batches++] = bench_now() - sent[n];
		}
		done += count * pipeline;
	}
	return done;
}

static void run(const struct exchange *known, int port, const char *name)
{
	unsigned count, pipeline, requests, done;
	uint64_t cpu, ticks;
	char operation[16], text[64];

	if (sscanf(name, "%15[^/]/%u/%u/%u", operation, &count, &pipeline, &requests) != 4 || !count || !pipeline ||
	    !requests || count > MOST_CONNECTIONS || pipeline > MOST_PIPELINE) {
		fprintf(stderr, "client: %s is no case\n", name);
		exit(2);
	}
	while (known->operation && strcmp(known->operation, operation) != 0)
		known++;
	if (!known->operation) {
		fprintf(stderr, "client: there is no operation %s\n", operation);
		exit(2);
	}
	sample = calloc(requests / pipeline + count, sizeof *sample);
	if (!sample)
		bench_die("calloc");
	for (unsigned n = 0; n < count; n++)
		connections[n] = connect_to(port);
	exchange(known, count, pipeline, requests / 10);
	memset(sample, 1, (requests / pipeline + count) * sizeof *sample);
	cpu = server_time();
	ticks = bench_now();
	done = exchange(known, count, pipeline, requests);
	ticks = bench_now() - ticks;
	cpu = server_time() - cpu;
	snprintf(text, sizeof text, "%s/%u/%u", operation, count, pipeline);
	printf("bench-cost %s server %llu %u\n", text, (unsigned long long)cpu, done);
	printf("bench-cost %s all %llu %u\n", text, (unsigned long long)ticks, done);
	bench_report(text, 0, sample, done / pipeline, bench_reading);
	for (unsigned n = 0; n < count; n++)
		close(connections[n]);
	free(sample);
}

int main(int argc, char **argv)
{
	const char *pid = getenv("UKLIMG_PID");
	const struct exchange *known;

	if (argc < 4 || !pid || clock_getcpuclockid(atoi(pid), &server) != 0) {
		fprintf(stderr, "usage: UKLIMG_PID=PID client redis|memcached PORT CASE...\n");
		return 2;
	}
	known = strcmp(argv[1], "redis") == 0 ? redis : memcached;
	setvbuf(stdout, NULL, _IOLBF, 0);
	bench_start();
	for (int n = 3; n < argc; n++)
		run(known, atoi(argv[2]), argv[n]);
	bench_end();
	return 0;
}
