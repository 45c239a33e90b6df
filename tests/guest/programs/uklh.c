/* SPDX-License-Identifier: Apache-2.0 */
/* ukl.h: what each function does as part of the kernel, and in ring 3. */
#include "uklcheck.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <ukl.h>

UKL_KERNEL_FUNCTION(long long, ktime_get, void)
UKL_KERNEL_FUNCTION(void, get_random_bytes, void *, unsigned long)
UKL_KERNEL_FUNCTION(unsigned long long, slow_virt_to_phys, void*)
UKL_KERNEL_FUNCTION(long, schedule_timeout_interruptible, long)

#define SIZE (1u << 20)

static volatile sig_atomic_t signals;

static void count(int number UKL_UNUSED)
{
	signals++;
}

static void switches(void)
{
	CHECK_EQ(ukl_linked(), (ukl_cs() & 3) == 0);
	for (int on = 2; on >= 0; on--) {
		int bypass = ukl_bypass(on), rtc = ukl_run_to_completion(on);

		/* Not every kernel has them, nor every image. */
		if (bypass == -1)
			CHECK(errno == ENOSYS || (ukl_linked() && errno == EOPNOTSUPP));
		if (!ukl_linked())
			CHECK(bypass == -1 && rtc == -1);
		CHECK(getppid() > 0);
	}
	puts("switches: ok");
}

static void tcp_pair(int ends[2])
{
	int listener = (int)SYS(socket(AF_INET, SOCK_STREAM, 0));
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof name;
	struct ifreq request;

	memset(&request, 0, sizeof request);
	strcpy(request.ifr_name, "lo");
	SYS(ioctl(listener, SIOCGIFFLAGS, &request));
	request.ifr_flags |= IFF_UP;
	SYS(ioctl(listener, SIOCSIFFLAGS, &request));
	SYS(bind(listener, (struct sockaddr *)&name, sizeof name));
	SYS(listen(listener, 1));
	SYS(getsockname(listener, (struct sockaddr *)&name, &length));
	ends[0] = (int)SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(connect(ends[0], (struct sockaddr *)&name, length));
	ends[1] = (int)SYS(accept(listener, NULL, NULL));
	SYS(close(listener));
}

static int wake_fd;

static void write_one(int number UKL_UNUSED)
{
	signals++;
	if (write(wake_fd, "s", 1) != 1)
		_exit(UKL_EXIT_CHECK);
}

static void shortcuts(void)
{
	struct itimerval once = {{0, 0}, {0, 30000}};
	int ends[2], pair[2], pipes[2];
	char text[8];

	tcp_pair(ends);
	CHECK_EQ(ukl_tcp_send(ends[0], "abc", 3, 0), 3);
	CHECK_EQ(ukl_tcp_recv(ends[1], text, 2, MSG_PEEK), 2);
	CHECK_EQ(ukl_tcp_recv(ends[1], text, 3, MSG_WAITALL), 3);
	CHECK_EQ(memcmp(text, "abc", 3), 0);
	CHECK_FAILS(ukl_tcp_recv(ends[1], text, 1, MSG_DONTWAIT), EAGAIN);
	CHECK_FAILS(ukl_tcp_recv(ends[1], (void *)0xffff888000001000UL, 1, MSG_DONTWAIT), EFAULT);
	CHECK_FAILS(ukl_tcp_send(ends[0], (void *)8, 1, 0), EFAULT);
	CHECK_FAILS(ukl_tcp_send(-1, text, 1, 0), EBADF);
	/* A signal ends the wait or does not, as its handler says. */
	wake_fd = ends[0];
	ukl_handle(SIGALRM, write_one, SA_RESTART);
	SYS(setitimer(ITIMER_REAL, &once, NULL));
	CHECK_EQ(ukl_tcp_recv(ends[1], text, 1, 0), 1);
	ukl_handle(SIGALRM, count, 0);
	SYS(setitimer(ITIMER_REAL, &once, NULL));
	CHECK_FAILS(ukl_tcp_recv(ends[1], text, 1, 0), EINTR);
	CHECK_EQ(signals, 2);
	/* Something else. */
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	SYS(pipe(pipes));
	if (ukl_tcp_send(pair[0], "x", 1, 0) == -1) {
		CHECK_EQ(errno, EOPNOTSUPP);
		CHECK_EQ(ukl_linked(), 1);
		CHECK_FAILS(ukl_tcp_recv(pipes[0], text, 1, 0), EOPNOTSUPP);
	}
	ukl_handle(SIGPIPE, count, 0);
	SYS(close(ends[1]));
	while (ukl_tcp_send(ends[0], "x", 1, 0) == 1)
		ukl_sleep_ms(1);
	CHECK(errno == EPIPE || errno == ECONNRESET);
	CHECK_FAILS(ukl_tcp_send(ends[0], "x", 1, MSG_NOSIGNAL), EPIPE);
	SYS(close(ends[0]));
	puts("TCP: ok");
}

static long faults(void)
{
	struct rusage usage;

	SYS(getrusage(RUSAGE_SELF, &usage));
	return usage.ru_minflt;
}

static void pinned(void)
{
	char *memory = ukl_pinned_alloc(SIZE);
	unsigned char there[SIZE / 4096];
	pid_t child;
	long before;

	CHECK(memory != NULL);
	SYS(mincore(memory, SIZE, there));
	for (size_t i = 0; i < sizeof there; i++)
		CHECK_EQ(there[i] & 1, 1);
	(void)faults();
	before = faults();
	for (size_t i = 0; i < SIZE; i++)
		CHECK_EQ(memory[i], 0);
	memset(memory, 1, SIZE);
	CHECK_EQ(faults(), before);
	child = (pid_t)SYS(fork());
	if (!child) {
		memory[0] = 2;
		_exit(0);
	}
	ukl_wait_signal(child, SIGSEGV);
	ukl_pinned_free(memory, SIZE);
	ukl_pinned_free(NULL, 0);
	CHECK(ukl_pinned_alloc(0) == NULL && errno == EINVAL);
	CHECK(ukl_pinned_alloc((size_t)1 << 46) == NULL && (errno == ENOMEM || errno == EAGAIN));
	puts("pinned memory: ok");
}

static void kernel_memory(void)
{
	char *memory = ukl_kernel_alloc(SIZE);
	int pipes[2];
	pid_t child;

	if (!ukl_linked()) {
		CHECK(memory == NULL && errno == ENOSYS);
	} else {
		CHECK((unsigned long)memory >> 63);
		for (size_t i = 0; i < SIZE; i++)
			CHECK_EQ(memory[i], 0);
		memset(memory, 7, SIZE);
		/* Of all processes, and not for system calls. */
		child = (pid_t)SYS(fork());
		if (!child) {
			memory[5]++;
			_exit(0);
		}
		ukl_wait_exit(child, 0);
		CHECK_EQ(memory[5], 8);
		SYS(pipe(pipes));
		CHECK_FAILS(write(pipes[1], memory, 1), EFAULT);
		CHECK(ukl_kernel_alloc(0) == NULL && errno == EINVAL);
		/* What functions of the kernel are for. */
		ukl_kernel_get_random_bytes(memory + 8, 16);
		CHECK(memcmp(memory + 8, memory + 24, 16) != 0);
		CHECK_EQ(memory[24], 7);
		CHECK(ukl_kernel_slow_virt_to_phys(memory) != 0);
		CHECK_EQ(ukl_kernel_slow_virt_to_phys(memory + 1) - ukl_kernel_slow_virt_to_phys(memory), 1);
		ukl_kernel_free(memory);
	}
	ukl_kernel_free(NULL);
	puts("memory of the kernel: ok");
}

static void by_name(void)
{
	struct itimerval once = {{0, 0}, {0, 30000}};
	struct timespec before, after;

	if (ukl_linked()) {
		long long now;

		SYS(clock_gettime(CLOCK_MONOTONIC, &before));
		now = ukl_kernel_ktime_get();
		SYS(clock_gettime(CLOCK_MONOTONIC, &after));
		CHECK(now >= before.tv_sec * 1000000000LL + before.tv_nsec);
		CHECK(now <= after.tv_sec * 1000000000LL + after.tv_nsec);
		/* It sleeps, and a signal wakes it up. */
		CHECK_EQ(ukl_kernel_schedule_timeout_interruptible(1), 0);
		signals = 0;
		ukl_handle(SIGALRM, count, 0);
		SYS(setitimer(ITIMER_REAL, &once, NULL));
		CHECK(ukl_kernel_schedule_timeout_interruptible(1000000) > 0);
		CHECK_EQ(signals, 1);
	}
	puts("functions by name: ok");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	ukl_begin("uklh");
	switches();
	shortcuts();
	pinned();
	kernel_memory();
	by_name();
	return ukl_end();
}
