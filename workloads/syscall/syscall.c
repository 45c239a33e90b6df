/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What simple system calls cost, and the same with larger buffers (the paper's figures 3 and 4):
 *
 *     syscall SAMPLES
 *
 * `read` and `write` are on a file in memory, `zero` and `null` one byte of /dev/zero and to /dev/null, `sendto` and
 * `recvfrom` on a TCP connection over the loopback interface whose two ends are this process's: what sendto measures
 * includes the packet's way up to the other end, recvfrom finds the data there. Buffers are touched beforehand.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../bench.h"

#define LARGEST 8192

static const unsigned sizes[] = { 1, 256, 1024, 2048, 4096, 8192 };
static char buffer[LARGEST];
static uint64_t *sample;
static unsigned samples;

#define MEASURE(name, size, before, operation, after)                                                                      \
	do {                                                                                                               \
		for (unsigned n = 0; n < samples; n++) {                                                                   \
			uint64_t begin;                                                                                    \
			long got;                                                                                          \
                                                                                                                           \
			before;                                                                                            \
			begin = bench_now();                                                                               \
			got = operation;                                                                                   \
			sample[n] = bench_now() - begin;                                                                   \
			if (got != (long)(size))                                                                           \
				bench_die(name);                                                                           \
			after;                                                                                             \
		}                                                                                                          \
		bench_report(name, size, sample, samples, bench_reading);                                                  \
	} while (0)

static void receive_all(int fd, size_t size)
{
	while (size) {
		ssize_t got = recvfrom(fd, buffer, size, 0, NULL, NULL);

		if (got <= 0)
			bench_die("recvfrom");
		size -= got;
	}
}

static void send_all(int fd, size_t size)
{
	if (sendto(fd, buffer, size, 0, NULL, 0) != (ssize_t)size)
		bench_die("sendto");
}

static void connected(int end[2])
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t length = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	end[0] = socket(AF_INET, SOCK_STREAM, 0);
	if (listener < 0 || end[0] < 0 || bind(listener, (struct sockaddr *)&address, length) != 0 ||
	    listen(listener, 1) != 0 || getsockname(listener, (struct sockaddr *)&address, &length) != 0 ||
	    connect(end[0], (struct sockaddr *)&address, length) != 0 || (end[1] = accept(listener, NULL, NULL)) < 0)
		bench_die("a connection to ourselves");
	for (int n = 0; n < 2; n++)
		setsockopt(end[n], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	close(listener);
}

int main(int argc, char **argv)
{
	int null_fd = open("/dev/null", O_WRONLY), zero_fd = open("/dev/zero", O_RDONLY), end[2];
	int file = open("/tmp/file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	long parent;

	samples = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
	sample = calloc(samples ? samples : 1, sizeof *sample);
	if (null_fd < 0 || zero_fd < 0 || file < 0 || !samples || !sample)
		bench_die("open");
	memset(sample, 1, samples * sizeof *sample);
	memset(buffer, 1, sizeof buffer);
	if (write(file, buffer, LARGEST) != LARGEST)
		bench_die("write");
	connected(end);
	bench_start();
	parent = getppid();
	for (unsigned n = 0; n < samples; n++) {
		uint64_t begin = bench_now();
		long got = getppid();

		sample[n] = bench_now() - begin;
		if (got != parent)
			bench_die("getppid");
	}
	bench_report("getppid", 0, sample, samples, bench_reading);
	MEASURE("zero", 1, , read(zero_fd, buffer, 1), );
	MEASURE("null", 1, , write(null_fd, buffer, 1), );
	for (unsigned n = 0; n < sizeof sizes / sizeof *sizes; n++) {
		unsigned size = sizes[n];

		MEASURE("read", size, lseek(file, 0, SEEK_SET), read(file, buffer, size), );
		MEASURE("write", size, lseek(file, 0, SEEK_SET), write(file, buffer, size), );
		MEASURE("sendto", size, , sendto(end[0], buffer, size, 0, NULL, 0), receive_all(end[1], size));
		MEASURE("recvfrom", size, send_all(end[0], size), recvfrom(end[1], buffer, size, 0, NULL, NULL), );
	}
	bench_end();
	return 0;
}
