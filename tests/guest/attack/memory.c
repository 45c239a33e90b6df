/* SPDX-License-Identifier: Apache-2.0 */
/* Reading, writing and mapping the kernel's half, above all the application's text, from ring 3: by instructions and by calls. */
#include "attack.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>

#define PAGE 4096ul

static void load(void *at)
{
	(void)*(volatile unsigned char *)at;
}

static void store(void *at)
{
	/* What is there already, as far as anyone can know: should the store work, `ret` stays `ret`. */
	*(volatile unsigned char *)at = 0xc3;
}

static void locked(void *at)
{
	__asm__ volatile("lock orl $0, (%0)" : : "r"(at) : "memory", "cc");
}

static void by_instruction(long goal)
{
	static void (*const access[])(void *) = {load, store, locked};

	for (size_t i = 0; i < 3; i++)
		if (probe_guarded(access[i], (void *)goals[goal].at) == 0)
			escaped("access %zu of %#lx works", i, goals[goal].at);
}

static void by_mapping(long goal)
{
	uintptr_t at = goals[goal].at & ~(PAGE - 1);
	void *own = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	MUST_FAIL((long)mmap((void *)at, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	MUST_FAIL((long)mmap((void *)at, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	MUST_FAIL(mprotect((void *)at, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
	MUST_FAIL(syscall(SYS_pkey_mprotect, at, PAGE, PROT_READ | PROT_WRITE, -1));
	MUST_FAIL((long)mremap((void *)at, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
	MUST_FAIL((long)mremap(own, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)at));
	MUST_FAIL(munmap((void *)at, PAGE));
	MUST_FAIL(madvise((void *)at, PAGE, MADV_DONTNEED));
	MUST_FAIL(mlock((void *)at, PAGE));
	MUST_FAIL(msync((void *)at, PAGE, MS_SYNC));
	MUST_FAIL(syscall(SYS_mincore, at, PAGE, own));
	MUST_FAIL(syscall(SYS_remap_file_pages, at, PAGE, 0, 0, 0));
	/* brk gives the old break when it refuses. */
	if ((uintptr_t)syscall(SYS_brk, at + PAGE) >> 63)
		escaped("brk in the kernel's half");
}

static void by_calls(long goal)
{
	const uintptr_t at = goals[goal].at;
	void *const there = (void *)at;
	int zero = open("/dev/zero", O_RDWR), ends[2], sockets[2];
	struct iovec vector = {there, 16}, own = {&(char[16]){0}, 16};

	if (zero < 0 || pipe(ends) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0)
		_exit(2);
	/* Raw: libc must not look first. Into it: */
	MUST_FAIL(syscall(SYS_read, zero, there, 16));
	MUST_FAIL(syscall(SYS_readv, zero, &vector, 1));
	MUST_FAIL(syscall(SYS_getrandom, there, 16, 0));
	MUST_FAIL(syscall(SYS_clock_gettime, CLOCK_REALTIME, there));
	MUST_FAIL(syscall(SYS_uname, there));
	MUST_FAIL(syscall(SYS_pipe, there));
	MUST_FAIL(syscall(SYS_getcwd, there, 64));
	MUST_FAIL(syscall(SYS_stat, "/", there));
	MUST_FAIL(syscall(SYS_sigaltstack, NULL, there));
	MUST_FAIL(syscall(SYS_prctl, PR_GET_NAME, there, 0, 0, 0));
	MUST_FAIL(syscall(SYS_arch_prctl, 0x1003, there));
	/* Out of it: */
	MUST_FAIL(syscall(SYS_write, ends[1], there, 16));
	MUST_FAIL(syscall(SYS_writev, ends[1], &vector, 1));
	MUST_FAIL(syscall(SYS_vmsplice, ends[1], &vector, 1, 0));
	MUST_FAIL(syscall(SYS_sendto, sockets[0], there, 16, 0, NULL, 0));
	MUST_FAIL(syscall(SYS_open, there, O_RDONLY));
	/* Both, through the interfaces to other processes' memory: */
	MUST_FAIL(process_vm_readv(getpid(), &own, 1, &vector, 1, 0));
	MUST_FAIL(process_vm_writev(getpid(), &own, 1, &vector, 1, 0));
}

static void by_mem_file(long goal)
{
	int fd = open("/proc/self/mem", O_RDWR);
	char bytes[16];

	if (fd < 0) {
		note("/proc/self/mem: errno %d", errno);
		return;
	}
	/* Offsets are signed; the kernel's half is reached by negative ones. */
	MUST_FAIL(pread(fd, bytes, 1, (off_t)goals[goal].at));
	MUST_FAIL(pwrite(fd, "\xc3", 1, (off_t)goals[goal].at));
	if (lseek(fd, (off_t)goals[goal].at, SEEK_SET) == (off_t)goals[goal].at) {
		MUST_FAIL(read(fd, bytes, 1));
		MUST_FAIL(write(fd, "\xc3", 1));
	}
}

static void by_userfault(long goal)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.range = {goals[goal].at & ~(PAGE - 1), PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct uffdio_copy copy = {.dst = goals[goal].at & ~(PAGE - 1), .src = probe_stack() & ~(PAGE - 1), .len = PAGE};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0) {
		note("userfaultfd: errno %d", errno);
		return;
	}
	if (ioctl(fd, UFFDIO_API, &api) != 0)
		_exit(2);
	MUST_FAIL(ioctl(fd, UFFDIO_REGISTER, &range));
	MUST_FAIL(ioctl(fd, UFFDIO_COPY, &copy));
}

/* The boundaries by which the kernel knows code, data and heap, moved into its own half. */
static void by_boundaries(long goal)
{
	static const int fields[] = {PR_SET_MM_START_CODE, PR_SET_MM_END_CODE, PR_SET_MM_START_DATA,  PR_SET_MM_END_DATA,
				     PR_SET_MM_START_STACK, PR_SET_MM_START_BRK, PR_SET_MM_BRK,	      PR_SET_MM_ARG_START,
				     PR_SET_MM_ENV_START,   PR_SET_MM_AUXV};

	for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
		MUST_FAIL(prctl(PR_SET_MM, fields[i], goals[goal].at, PAGE, 0));
	probe_privileged();
}

/* The machine's memory as a file, where the kernel and the application lie: by root, who may make the file. */
static void by_device(long minor)
{
	char path[300], bytes[8];
	int fd;

	snprintf(path, sizeof path, "%s/device", here.folder);
	if (mknod(path, S_IFCHR | 0600, makedev(1, (unsigned)minor)) != 0) {
		note("mknod: errno %d", errno);
		return;
	}
	fd = open(path, O_RDWR);
	unlink(path);
	if (fd < 0) {
		note("open: errno %d", errno);
		return;
	}
	for (off_t at = 16 << 20; at < 128 << 20; at += 4 << 20) {
		MUST_FAIL(pread(fd, bytes, sizeof bytes, at));
		MUST_FAIL(pwrite(fd, bytes, sizeof bytes, at));
		MUST_FAIL((long)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at));
	}
}

void memory_attempts(void)
{
	/* Whether an ordinary kernel refuses is its configuration's business. */
	if (here.ukl) {
		try_it(by_device, 1, "memory through /dev/mem");
		try_it(by_device, 2, "memory through /dev/kmem");
	}
	for (long goal = GOAL_APP; goal < GOALS; goal++) {
		const char *name = goals[goal].name;

		try_it(by_instruction, goal, "reading and writing %s by instructions", name);
		try_it(by_mapping, goal, "mapping over %s", name);
		try_it(by_calls, goal, "%s as a buffer of system calls", name);
		try_it(by_mem_file, goal, "%s through /proc/self/mem", name);
		try_it(by_userfault, goal, "%s through userfaultfd", name);
		try_it(by_boundaries, goal, "boundaries of the process in %s", name);
	}
}
