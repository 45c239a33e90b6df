/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Returns from interrupts and faults where they are not ordinary: onto a stack that cannot be written, that is no
 * address at all or the kernel's, with the trap flag set, and to an instruction with a breakpoint.
 *
 * Usage: returns [ret|iret]; with an argument it also looks whether interrupts use what is below the red zone.
 */
#include "uklcheck.h"

#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>

#define PAGE 4096UL
#define SIGNALS 60
#define STEPPED 200
#define TOUCHED 100

/* Spin with RSP = stack until *count is until. Nothing is on that stack. */
void spin_on(volatile uint32_t *count, uint32_t until, unsigned long stack);
/* Spin until the words below the red zone change, and return the upper one; 0 when *stop comes first. */
unsigned long watch_below(volatile uint32_t *stop);
/* Write a byte to each of pages; step_pages() does so step by step. */
void touch_pages(char *start, unsigned long pages);
void step_pages(char *start, unsigned long pages);
extern char watch_below_end[], touch_here[];

__asm__(".text\n"
	".globl spin_on, watch_below, watch_below_end, touch_pages, touch_here, step_pages\n"
	"spin_on:\n"
	"	mov %rsp, %rax\n"
	"	mov %rdx, %rsp\n"
	"1:	pause\n"
	"	cmp %esi, (%rdi)\n"
	"	jb 1b\n"
	"	mov %rax, %rsp\n"
	"	ret\n"
	"watch_below:\n"
	"	mov $-1, %rcx\n"
	"	mov %rcx, -136(%rsp)\n"
	"	mov %rcx, -144(%rsp)\n"
	"1:	mov -136(%rsp), %rax\n"
	"	cmp %rcx, %rax\n"
	"	jne 2f\n"
	"	cmpl $0, (%rdi)\n"
	"	je 1b\n"
	"	xor %eax, %eax\n"
	"2:	ret\n"
	"watch_below_end:\n"
	"touch_pages:\n"
	"touch_here:\n"
	"	movb $1, (%rdi)\n"
	"	add $4096, %rdi\n"
	"	dec %rsi\n"
	"	jnz touch_here\n"
	"	ret\n"
	"step_pages:\n"
	"	pushf\n"
	"	orl $0x100, (%rsp)\n"
	"	popf\n"
	"1:	movb $1, (%rdi)\n"
	"	add $4096, %rdi\n"
	"	dec %rsi\n"
	"	jnz 1b\n"
	"	pushf\n"
	"	andl $~0x100, (%rsp)\n"
	"	popf\n"
	"	ret\n");

static volatile uint32_t alarms, steps;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
}

static void on_step(int signal)
{
	(void)signal;
	steps++;
}

static void handle(int signal, void (*handler)(int))
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};

	SYS(sigaction(signal, &action, NULL));
}

static void every(long microseconds)
{
	struct itimerval interval = {{0, microseconds}, {0, microseconds}};

	SYS(setitimer(ITIMER_REAL, &interval, NULL));
}

static char *pages(unsigned long count)
{
	return (char *)SYS(mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void odd_stacks(void)
{
	char *two = pages(2), *three = pages(3);
	const unsigned long stacks[] = {
		(unsigned long)two + PAGE + 64,	   /* below it, nothing is mapped */
		(unsigned long)three + PAGE + 64,  /* below it, nobody has written yet */
		(unsigned long)three + 2 * PAGE + 136, /* one of two words is below it */
		0,
		64,
		0x0000800000000000UL + 512, /* not canonical */
		0xffff7ffffffff000UL,
		0xffffffff80000000UL, /* the kernel's */
		0xfffffffffffff000UL,
	};

	SYS(munmap(two, PAGE));
	SYS(munmap(three + PAGE, PAGE));
	SYS(mmap(three + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	every(1000);
	for (size_t i = 0; i < sizeof stacks / sizeof stacks[0]; i++) {
		alarms = 0;
		spin_on(&alarms, SIGNALS, stacks[i]);
	}
	every(0);
	printf("%zu odd stacks, %d signals on each\n", sizeof stacks / sizeof stacks[0], SIGNALS);
}

static void single_steps(void)
{
	handle(SIGTRAP, on_step);
	steps = 0;
	step_pages(pages(STEPPED), STEPPED);
	/* The one after popf is the first, the popf that ends it the last. */
	CHECK_EQ(steps, 4 * STEPPED + 3);
	printf("%u single steps, %d of them faulted\n", steps, STEPPED);
}

static void breakpoint(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_BREAKPOINT,
		.size = sizeof attr,
		.bp_type = HW_BREAKPOINT_X,
		.bp_addr = (unsigned long)touch_here,
		.bp_len = sizeof(long),
		.exclude_hv = 1,
	};
	uint64_t hits = 0;
	char *start = pages(TOUCHED);
	int event = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);

	touch_pages(start, TOUCHED);
	/* Some machines that only run the programs have no debug registers for us. */
	CHECK(event >= 0 || ukl_expected_mode < 0);
	if (event >= 0) {
		CHECK_EQ(read(event, &hits, sizeof hits), sizeof hits);
		CHECK_EQ(hits, TOUCHED);
		SYS(close(event));
	}
	puts("a breakpoint where each execution faults is hit once each time");
}

static void below(bool written)
{
	unsigned long value;

	alarms = 0;
	every(300000);
	value = watch_below(&alarms);
	every(0);
	if (!written) {
		CHECK_EQ(value, 0);
		return;
	}
	CHECK(value > (unsigned long)watch_below);
	CHECK(value < (unsigned long)watch_below_end);
}

int main(int argc, char **argv)
{
	stack_t other = {.ss_sp = pages(8), .ss_size = 8 * PAGE};

	ukl_begin("returns");
	SYS(sigaltstack(&other, NULL));
	handle(SIGALRM, on_alarm);
	if (argc > 1)
		below(!strcmp(argv[1], "ret"));
	odd_stacks();
	single_steps();
	breakpoint();
	return ukl_end();
}
