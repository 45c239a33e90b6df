/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks shared by the guest programs.
 *
 * Contract: a program prints the same bytes to stdout on plain Linux and as UKL (no address, process id or time), exits 0
 * when every check passed, 1 with a message on stderr when one failed, and 99 when it does not run in the mode the
 * harness expects:
 *
 *   EXPECT_UKL=1  CPL 0, main in the kernel half, static data below 2 GiB (the split layout)
 *   EXPECT_UKL=0  CPL 3, main in the user half
 *   unset         either
 *
 * Everything here is static inline, so that a program stays one translation unit.
 */
#ifndef UKLCHECK_H
#define UKLCHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UKL_EXIT_CHECK 1
#define UKL_EXIT_MODE 99
#define UKL_KERNEL_HALF 0xffffffff80000000UL
#define UKL_LOW_DATA 0x80000000UL

/* Declared for its address; every program defines it with these parameters. */
int main(int argc, char **argv);

#define UKL_UNUSED __attribute__((unused))

/* One in .data, one in .bss: both must lie below 2 GiB in the split layout. */
static long ukl_in_data UKL_UNUSED = 0x5eed;
static long ukl_in_bss UKL_UNUSED;
static int ukl_expected_mode UKL_UNUSED = -1;
static const char *ukl_name UKL_UNUSED = "?";

/* Written with write(2) alone, so that it may be called in signal handlers and in children of vfork. */
UKL_UNUSED __attribute__((noreturn, format(printf, 2, 3))) static void ukl_die(int status, const char *format, ...)
{
	char text[512];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(text, sizeof text - 1, format, args);
	va_end(args);
	if (length < 0)
		length = 0;
	if ((size_t)length > sizeof text - 2)
		length = (int)sizeof text - 2;
	text[length++] = '\n';
	if (write(STDERR_FILENO, text, (size_t)length) < 0)
		_exit(status);
	_exit(status);
}

#define ukl_fail(format, ...)                                                                                              \
	ukl_die(UKL_EXIT_CHECK, "%s: FAILED at %s:%d: " format, ukl_name, __FILE_NAME__, __LINE__, ##__VA_ARGS__)

/* The condition must hold; errno is shown because most conditions are about a system call. */
#define CHECK(condition)                                                                                                   \
	do {                                                                                                               \
		if (!(condition))                                                                                          \
			ukl_fail("%s (errno %d)", #condition, errno);                                                      \
	} while (0)

/* Two integers must be equal; both are shown. */
#define CHECK_EQ(got, want)                                                                                                \
	do {                                                                                                               \
		long long ukl_got = (long long)(got), ukl_want = (long long)(want);                                        \
		if (ukl_got != ukl_want)                                                                                   \
			ukl_fail("%s is %lld, not %s = %lld (errno %d)", #got, ukl_got, #want, ukl_want, errno);           \
	} while (0)

#define CHECK_STR(got, want)                                                                                               \
	do {                                                                                                               \
		const char *ukl_got = (got), *ukl_want = (want);                                                           \
		if (strcmp(ukl_got, ukl_want) != 0)                                                                        \
			ukl_fail("%s is \"%s\", not \"%s\"", #got, ukl_got, ukl_want);                                     \
	} while (0)

/* A system call must fail with exactly this error. */
#define CHECK_FAILS(call, error)                                                                                           \
	do {                                                                                                               \
		errno = 0;                                                                                                 \
		long long ukl_got = (long long)(call);                                                                     \
		int ukl_errno = errno;                                                                                     \
		if (ukl_got != -1 || ukl_errno != (error))                                                                 \
			ukl_fail("%s gave %lld with errno %d, not -1 with %s", #call, ukl_got, ukl_errno, #error);         \
	} while (0)

/* A pthread function returns 0 or the error. */
#define CHECK_OK(call)                                                                                                     \
	do {                                                                                                               \
		int ukl_got = (call);                                                                                      \
		if (ukl_got != 0)                                                                                          \
			ukl_fail("%s gave %d", #call, ukl_got);                                                            \
	} while (0)

UKL_UNUSED static long ukl_checked(long result, const char *call, int line)
{
	if (result == -1)
		ukl_die(UKL_EXIT_CHECK, "%s: FAILED at line %d: %s (errno %d)", ukl_name, line, call, errno);
	return result;
}

/* The value of a system call that must not fail. */
#define SYS(call) ukl_checked((long)(call), #call, __LINE__)

static inline unsigned ukl_cs(void)
{
	unsigned cs;

	__asm__ volatile("mov %%cs, %0" : "=r"(cs));
	return cs & 0xffff;
}

/* Cheap and async-signal-safe: for threads, children and signal handlers. */
UKL_UNUSED static void ukl_check_mode(void)
{
	unsigned long text = (unsigned long)(uintptr_t)&main;
	unsigned long data = (unsigned long)(uintptr_t)&ukl_in_data, bss = (unsigned long)(uintptr_t)&ukl_in_bss;
	unsigned cpl = ukl_cs() & 3;

	if (ukl_expected_mode == 1) {
		if (cpl != 0)
			ukl_die(UKL_EXIT_MODE, "%s: runs at CPL %u, not as UKL", ukl_name, cpl);
		if (text < UKL_KERNEL_HALF)
			ukl_die(UKL_EXIT_MODE, "%s: main at %#lx is not in the kernel half", ukl_name, text);
		if (data >= UKL_LOW_DATA || bss >= UKL_LOW_DATA)
			ukl_die(UKL_EXIT_MODE, "%s: data at %#lx and %#lx is not below 2 GiB", ukl_name, data, bss);
	} else if (ukl_expected_mode == 0) {
		if (cpl != 3)
			ukl_die(UKL_EXIT_MODE, "%s: runs at CPL %u, not on plain Linux", ukl_name, cpl);
		if (text >> 63)
			ukl_die(UKL_EXIT_MODE, "%s: main at %#lx is not in the user half", ukl_name, text);
	}
}

/*
 * First statement of every main. Lines leave at once: a forked child must not inherit half a buffer, and what a crash
 * leaves behind says how far the program came.
 */
UKL_UNUSED static void ukl_begin(const char *name)
{
	const char *expected = getenv("EXPECT_UKL");

	ukl_name = name;
	if (expected && (strcmp(expected, "0") == 0 || strcmp(expected, "1") == 0))
		ukl_expected_mode = expected[0] - '0';
	else if (expected)
		ukl_die(UKL_EXIT_MODE, "%s: EXPECT_UKL is \"%s\", not 0 or 1", name, expected);
	ukl_check_mode();
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
}

/* Last statement of every main: ``return ukl_end();``. */
UKL_UNUSED static int ukl_end(void)
{
	ukl_check_mode();
	printf("%s: all checks passed\n", ukl_name);
	if (fflush(stdout) != 0 || ferror(stdout))
		ukl_die(UKL_EXIT_CHECK, "%s: standard output is broken (errno %d)", ukl_name, errno);
	return 0;
}

UKL_UNUSED static long long ukl_now_ms(void)
{
	struct timespec now;

	SYS(clock_gettime(CLOCK_MONOTONIC, &now));
	return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

UKL_UNUSED static void ukl_sleep_ms(long ms)
{
	struct timespec left = {ms / 1000, (ms % 1000) * 1000000};

	while (nanosleep(&left, &left) != 0)
		CHECK(errno == EINTR);
}

/* A pseudo-random sequence that is the same everywhere (Knuth's MMIX constants). */
UKL_UNUSED static uint64_t ukl_random(uint64_t *state)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return *state >> 16;
}

/* FNV-1a: enough to notice a byte that is lost, doubled or out of order. */
UKL_UNUSED static uint64_t ukl_hash(uint64_t hash, const void *bytes, size_t length)
{
	const unsigned char *at = (const unsigned char *)bytes;

	if (hash == 0)
		hash = 0xcbf29ce484222325ULL;
	while (length--)
		hash = (hash ^ *at++) * 0x100000001b3ULL;
	return hash;
}

/* A path for scratch files that no other process uses, below $UKL_TMP or /tmp (made where a bare guest has none). */
UKL_UNUSED static const char *ukl_tmp(char path[256], const char *name)
{
	const char *folder = getenv("UKL_TMP");

	if (!folder) {
		folder = "/tmp";
		if (mkdir(folder, 01777) != 0)
			CHECK(errno == EEXIST);
	}
	snprintf(path, 256, "%s/uklcheck-%s-%ld", folder, name, (long)getpid());
	return path;
}

/* The path by which this program can be executed again: argv[0], or its stub where argv[0] is a bare name. */
UKL_UNUSED static const char *ukl_self(char path[256], const char *argv0)
{
	snprintf(path, 256, "%s%s", strchr(argv0, '/') ? "" : "/ukl/", argv0);
	return path;
}

/* Wait for a child that must exit with this status. */
UKL_UNUSED static void ukl_wait_exit(pid_t child, int want)
{
	int status = 0;
	pid_t got;

	while ((got = waitpid(child, &status, 0)) == -1 && errno == EINTR)
		;
	CHECK_EQ(got - child, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == UKL_EXIT_MODE)
		_exit(UKL_EXIT_MODE);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != want)
		ukl_die(UKL_EXIT_CHECK, "%s: FAILED: a child ended with wait status %#x, not exit %d", ukl_name, (unsigned)status,
			want);
}

/* Wait for a child that must be ended by this signal. */
UKL_UNUSED static void ukl_wait_signal(pid_t child, int want)
{
	int status = 0;
	pid_t got;

	while ((got = waitpid(child, &status, 0)) == -1 && errno == EINTR)
		;
	CHECK_EQ(got - child, 0);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != want)
		ukl_die(UKL_EXIT_CHECK, "%s: FAILED: a child ended with wait status %#x, not signal %d", ukl_name, (unsigned)status,
			want);
}

UKL_UNUSED static void ukl_handle(int signal_number, void (*handler)(int), int flags)
{
	struct sigaction action;

	memset(&action, 0, sizeof action);
	action.sa_handler = handler;
	action.sa_flags = flags;
	sigemptyset(&action.sa_mask);
	SYS(sigaction(signal_number, &action, NULL));
}

UKL_UNUSED static void ukl_handle_info(int signal_number, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action;

	memset(&action, 0, sizeof action);
	action.sa_sigaction = handler;
	action.sa_flags = flags | SA_SIGINFO;
	sigemptyset(&action.sa_mask);
	SYS(sigaction(signal_number, &action, NULL));
}

/* Read or write everything; a short count is a failure. */
UKL_UNUSED static void ukl_read_all(int fd, void *buffer, size_t length)
{
	char *at = (char *)buffer;

	while (length) {
		ssize_t got = read(fd, at, length);

		if (got == -1 && errno == EINTR)
			continue;
		CHECK(got > 0);
		at += got;
		length -= (size_t)got;
	}
}

UKL_UNUSED static void ukl_write_all(int fd, const void *buffer, size_t length)
{
	const char *at = (const char *)buffer;

	while (length) {
		ssize_t put = write(fd, at, length);

		if (put == -1 && errno == EINTR)
			continue;
		CHECK(put > 0);
		at += put;
		length -= (size_t)put;
	}
}

#endif
