/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deep stacks: faults on the stack itself, in small and large steps, on the main stack, on a thread's, on an alternate one,
 * and past the end. At CPL 0 the processor does not switch stacks for a fault, so each of these is a way to a double fault.
 */
#include "uklcheck.h"

#include <alloca.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/resource.h>

#define MIB (1ul << 20)

static sigjmp_buf recover;
static volatile sig_atomic_t overflows;
static volatile uint64_t bottom = UINT64_MAX;

/* The array keeps every frame in memory; the sum on the way back notices a frame that was lost. */
__attribute__((noinline)) static uint64_t small_steps(unsigned depth, uint64_t seed)
{
	volatile uint64_t frame[24];
	uint64_t sum = 0;

	for (unsigned i = 0; i < 24; i++)
		frame[i] = seed * (i + 1) + depth;
	if (depth)
		sum = small_steps(depth - 1, seed * 6364136223846793005ULL + 1);
	for (unsigned i = 0; i < 24; i++) {
		CHECK(frame[i] == seed * (i + 1) + depth);
		sum += frame[i];
	}
	return sum;
}

/* Steps of many pages, touching only the far end: the stack grows over pages that were never touched. */
__attribute__((noinline)) static uint64_t large_steps(unsigned depth, size_t step)
{
	volatile char *frame = alloca(step);
	uint64_t sum;

	frame[0] = (char)depth;
	sum = depth ? large_steps(depth - 1, step) : 0;
	CHECK(frame[0] == (char)depth);
	frame[step - 1] = 1;
	return sum * 31 + (unsigned char)frame[0] + (unsigned char)frame[step - 1];
}

static unsigned ackermann(unsigned m, unsigned n)
{
	if (m == 0)
		return n + 1;
	return ackermann(m - 1, n == 0 ? 1 : ackermann(m, n - 1));
}

/* System calls that read from and write to stack pages never touched before: the kernel takes the fault. */
__attribute__((noinline)) static void kernel_touches(int zero)
{
	char *frame = alloca(MIB);

	for (size_t at = 0; at < MIB; at += 65536)
		CHECK_EQ(read(zero, frame + at, 8192), 8192);
	for (size_t at = 0; at < MIB; at += 65536)
		CHECK(frame[at] == 0 && frame[at + 8191] == 0);
}

static void *on_thread(void *result)
{
	ukl_check_mode();
	*(uint64_t *)result = small_steps(150000, 3) + large_steps(100, 65536);
	return NULL;
}

static void on_overflow(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	ukl_check_mode();
	CHECK(info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR);
	/* Deep work on the alternate stack while the other one is exhausted. */
	CHECK(small_steps(500, 9) != 0);
	overflows++;
	siglongjmp(recover, 1);
}

/* Frames small enough that the end of the stack is always met in a page that is not there. */
__attribute__((noinline)) static uint64_t endless(uint64_t depth)
{
	volatile uint64_t frame[64];

	frame[depth % 64] = depth;
	if (depth == bottom)
		return 0;
	return endless(depth + 1) + frame[depth % 64];
}

static void *overflow_thread(void *alternate)
{
	stack_t stack = {.ss_sp = alternate, .ss_size = 512 * 1024};

	SYS(sigaltstack(&stack, NULL));
	for (int i = 0; i < 3; i++)
		if (sigsetjmp(recover, 1) == 0)
			(void)endless(0);
	stack.ss_flags = SS_DISABLE;
	SYS(sigaltstack(&stack, NULL));
	return NULL;
}

static void thread_stacks(void)
{
	pthread_attr_t attributes;
	pthread_t thread;
	uint64_t sum = 0;

	CHECK_OK(pthread_attr_init(&attributes));
	CHECK_OK(pthread_attr_setstacksize(&attributes, 64 * MIB));
	CHECK_OK(pthread_create(&thread, &attributes, on_thread, &sum));
	CHECK_OK(pthread_join(thread, NULL));
	printf("a thread's stack: %016llx\n", (unsigned long long)sum);

	CHECK_OK(pthread_attr_setstacksize(&attributes, 256 * 1024));
	CHECK_OK(pthread_create(&thread, &attributes, overflow_thread, malloc(512 * 1024)));
	CHECK_OK(pthread_join(thread, NULL));
	CHECK_EQ(overflows, 3);
	CHECK_OK(pthread_attr_destroy(&attributes));
	puts("a thread's stack overflows: SIGSEGV on the alternate stack, 3 times");
}

static void main_overflow(void)
{
	static char alternate[512 * 1024];
	stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
	pid_t child;

	SYS(sigaltstack(&stack, NULL));
	overflows = 0;
	for (int i = 0; i < 3; i++)
		if (sigsetjmp(recover, 1) == 0)
			(void)endless(0);
	CHECK_EQ(overflows, 3);
	puts("the main stack overflows: SIGSEGV on the alternate stack, 3 times");

	child = (pid_t)SYS(fork());
	if (child == 0) {
		ukl_handle(SIGSEGV, SIG_DFL, 0);
		(void)endless(0);
	}
	ukl_wait_signal(child, SIGSEGV);
	puts("without a handler: killed by SIGSEGV");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	struct rlimit limit;
	int zero;

	ukl_begin("recursion");
	SYS(getrlimit(RLIMIT_STACK, &limit));
	limit.rlim_cur = 64 * MIB;
	CHECK(limit.rlim_max >= limit.rlim_cur);
	SYS(setrlimit(RLIMIT_STACK, &limit));
	ukl_handle_info(SIGSEGV, on_overflow, SA_ONSTACK);

	printf("large steps: %016llx\n", (unsigned long long)large_steps(200, 65536 + 48));
	printf("larger steps: %016llx\n", (unsigned long long)large_steps(20, 2 * MIB));
	printf("small steps: %016llx\n", (unsigned long long)small_steps(120000, 1));
	printf("ackermann(2, 2500) = %u\n", ackermann(2, 2500));
	zero = (int)SYS(open("/dev/zero", O_RDONLY));
	kernel_touches(zero);
	puts("system calls into untouched stack: ok");
	thread_stacks();
	main_overflow();
	return ukl_end();
}
