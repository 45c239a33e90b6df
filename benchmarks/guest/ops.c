/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What operations cost, in ticks of the time stamp counter. Under QEMU's `-icount shift=0` a tick is one instruction.
 *
 *     ops           all operations, each on its own line: `ops <name> <minimum> <median> <samples>`
 *
 * Each sample is one operation between two readings of the counter; the cost of reading it (the minimum of two readings
 * with nothing between) is taken off. The first lines are not operations but what the reader checks the method with:
 * `ops cpl`, `ops nops1000` (a thousand instructions), `ops clear-page` (what clearing a page counts as here).
 *
 * At CPL 0 some are measured once more as `called-...`: by the kernel's called entry, from code as libc's own but for that.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES 2000
#define TICKS 60
#define PAGE 4096

static uint64_t sample[SAMPLES];
static uint64_t reading;
static int null_fd, zero_fd, pipe_fd[2];
static char page_buffer[PAGE];
static unsigned cpl;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Nothing moves across it: every instruction of the operation lies between the two readings. */
static inline uint64_t now(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static int ascending(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void report(const char *name, unsigned count, uint64_t off)
{
	qsort(sample, count, sizeof sample[0], ascending);
	printf("ops %s %llu %llu %u\n", name, (unsigned long long)(sample[0] - off),
	       (unsigned long long)(sample[count / 2] - off), count);
}

#define MEASURE(name, operation)                                                                                           \
	do {                                                                                                               \
		for (unsigned n = 0; n < SAMPLES; n++) {                                                                   \
			uint64_t begin = now();                                                                            \
			operation;                                                                                         \
			sample[n] = now() - begin;                                                                         \
		}                                                                                                          \
		report(name, SAMPLES, reading);                                                                            \
	} while (0)

static void expect(long got, long want, const char *what)
{
	if (got != want)
		die(what);
}

static void calibrate(void)
{
	__asm__ volatile("mov %%cs, %0" : "=r"(cpl));
	cpl &= 3;
	printf("ops cpl %u %u 1\n", cpl, cpl);
	for (unsigned n = 0; n < SAMPLES; n++) {
		uint64_t begin = now();

		sample[n] = now() - begin;
	}
	qsort(sample, SAMPLES, sizeof sample[0], ascending);
	reading = sample[0];
	MEASURE("nops1000", __asm__ volatile(".rept 1000\n\tnop\n\t.endr"));
	MEASURE("clear-page", {
		void *to = page_buffer;
		long count = PAGE;

		__asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(0) : "memory");
	});
}

static void system_calls(void)
{
	char byte = 0;
	long result = 0;
	struct timespec time;

	MEASURE("getppid", result = syscall(SYS_getppid));
	expect(result > 0, 1, "getppid");
	MEASURE("write", result = write(null_fd, &byte, 1));
	expect(result, 1, "write");
	MEASURE("read", result = read(zero_fd, &byte, 1));
	expect(result, 1, "read");
	MEASURE("pipe", {
		result = write(pipe_fd[1], &byte, 1);
		result += read(pipe_fd[0], &byte, 1);
	});
	expect(result, 2, "pipe");
	/* Where a vDSO is mapped and the clock allows it, this is no system call. */
	MEASURE("clock_gettime", result = clock_gettime(CLOCK_MONOTONIC, &time));
	expect(result, 0, "clock_gettime");
}

/* To a child and back: two pipes, and on one processor two context switches. */
static void switches(void)
{
	int there[2], back[2];
	char byte = 0;
	long result = 0;
	pid_t child;

	if (pipe(there) != 0 || pipe(back) != 0 || (child = fork()) < 0)
		die("a child");
	if (child == 0) {
		close(there[1]);
		while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
			;
		_exit(0);
	}
	MEASURE("switch", {
		result = write(there[1], &byte, 1);
		result += read(back[0], &byte, 1);
	});
	expect(result, 2, "switch");
	close(there[1]);
	if (waitpid(child, NULL, 0) != child)
		die("waitpid");
}

/* As libc's syscall() and write() are on their way without an error, and with nothing to be cancelled. */
long called_syscall(long nr, ...);
long called_write(int fd, const void *bytes, size_t size);
long called_read(int fd, void *bytes, size_t size);
unsigned long entry, entry_for_c;
__asm__(".text\n"
	"called_syscall:\n"
	"	mov %rdi, %rax\n	mov %rsi, %rdi\n	mov %rdx, %rsi\n	mov %rcx, %rdx\n	mov %r8, %r10\n"
	"	mov %r9, %r8\n	mov 8(%rsp), %r9\n"
	"	mov entry(%rip), %rcx\n"
	"	call *%rcx\n"
	"	cmp $-4095, %rax\n	jae 1f\n"
	"	ret\n"
	"1:	ud2\n"
	".irp name, read, write\n"
	"called_\\name:\n"
	"	cmpb $0, single(%rip)\n	je 1b\n"
	"	.ifc \\name, read\n	xor %eax, %eax\n	.else\n	mov $1, %eax\n	.endif\n"
	"	call *entry_for_c(%rip)\n"
	"	cmp $-4096, %rax\n	ja 1b\n"
	"	ret\n"
	".endr\n"
	".data\n"
	"single: .byte 1\n"
	".text\n");

static void find_entry(void)
{
	FILE *file = fopen("/proc/kallsyms", "r");
	unsigned long address;
	char name[512];

	while (file && fscanf(file, "%lx %*c %511[^\n]", &address, name) == 2)
		if (strcmp(name, "__ukl_syscall") == 0)
			entry = address;
		else if (strcmp(name, "__ukl_syscall3") == 0)
			entry_for_c = address;
	if (!entry || !entry_for_c)
		die("__ukl_syscall");
	fclose(file);
}

static void called(void)
{
	char byte = 0;
	long result = 0;

	find_entry();
	MEASURE("called-getppid", result = called_syscall(SYS_getppid));
	expect(result > 0, 1, "getppid");
	MEASURE("called-write", result = called_write(null_fd, &byte, 1));
	expect(result, 1, "write");
	MEASURE("called-read", result = called_read(zero_fd, &byte, 1));
	expect(result, 1, "read");
	MEASURE("called-pipe", {
		result = called_write(pipe_fd[1], &byte, 1);
		result += called_read(pipe_fd[0], &byte, 1);
	});
	expect(result, 2, "pipe");
}

enum access { READS, WRITES, KERNEL_WRITES };

/*
 * The first access to each of SAMPLES pages. A read maps the page of zeros: the fault without clearing a page. The kernel
 * writes in read(2): a system call that is interrupted by a fault at CPL 0.
 */
static void page_faults(const char *name, enum access access)
{
	size_t size = (size_t)SAMPLES * PAGE;
	volatile char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap");
	/* A kernel without huge pages does not know the word. */
	if (madvise((void *)memory, size, MADV_NOHUGEPAGE) != 0 && errno != EINVAL)
		die("madvise");
	for (unsigned n = 0; n < SAMPLES; n++) {
		volatile char *at = &memory[(size_t)n * PAGE];
		uint64_t begin = now();

		if (access == READS)
			(void)*at;
		else if (access == WRITES)
			*at = 1;
		else if (read(zero_fd, (void *)at, 1) != 1)
			die("read");
		sample[n] = now() - begin;
	}
	report(name, SAMPLES, reading);
	munmap((void *)memory, size);
}

/* A loop that reads the counter is interrupted where two readings are far apart, and what interrupts it is the timer. */
static void timer(void)
{
	uint64_t before = now();
	unsigned found = 0;

	while (found < TICKS) {
		uint64_t here = now();

		if (here - before > 200)
			sample[found++] = here - before;
		before = here;
	}
	report("timer", TICKS, 0);
}

int main(void)
{
	null_fd = open("/dev/null", O_WRONLY);
	zero_fd = open("/dev/zero", O_RDONLY);
	if (null_fd < 0 || zero_fd < 0 || pipe(pipe_fd) != 0)
		die("open");
	/* Their own pages are touched before anything is measured. */
	memset(sample, 1, sizeof sample);
	memset(page_buffer, 1, sizeof page_buffer);
	calibrate();
	system_calls();
	if (cpl == 0)
		called();
	switches();
	page_faults("fault-read", READS);
	page_faults("fault-write", WRITES);
	page_faults("fault-kernel", KERNEL_WRITES);
	timer();
	return 0;
}
