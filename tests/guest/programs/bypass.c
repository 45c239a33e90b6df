/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls that bypass entry and exit work, where the kernel was asked for that (elsewhere the same calls without): four
 * threads make calls that block, sleep and return at once, by the instruction and by the kernel's entries, while signals
 * interrupt them and ymm or xmm registers are live. No error may be one that only the kernel knows, no signal may be lost.
 *
 *     bypass [seconds]     default UKL_STRESS_SECONDS, or 3
 *
 * UKL_BYPASSES=1 in the environment: the image was built with BYP, and it must be on for every thread that did not switch
 * it off; 0: it must not. A bypass does not keep the flags, which tells it from an ordinary system call.
 */
#include "uklcall.h"

#include <linux/futex.h>
#include <linux/rseq.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/rseq.h>
#include <sys/time.h>

#define THREADS 4
/* What the kernel returns to itself: ERESTARTSYS to ERESTART_RESTARTBLOCK. */
#define KERNELS_FIRST 512

struct worker {
	pthread_t thread;
	_Atomic long handled, sent, rounds;
	long interrupted;
	int pipe_fd[2], number;
};

static struct worker workers[THREADS];
static __thread struct worker *mine;
static atomic_bool over, all_sent, switched;
static long (*const ways[3])(long, long, long, long, long, long, long) = {trapped, called, called_by_c};

static void handle(int number)
{
	(void)number;
	if (mine)
		mine->handled++;
}

static long checked(const char *what, long result)
{
	if (result <= -KERNELS_FIRST && result > -4096)
		ukl_fail("%s returned %ld", what, result);
	return result;
}

/* `calls` times the system call `nr` by `entry`, or by the instruction for NULL, all vector registers live; 0: all were kept. */
long live_ymm(long calls, void *entry, const uint64_t vector[16][4], long nr);
long live_xmm(long calls, void *entry, const uint64_t vector[16][4], long nr);
#define LIVE(name, move, compare, last)                                                                                    \
	__asm__(".text\n.globl " name "\n.type " name ", @function\n" name ":\n"                                          \
		"	push %rbx\n	push %r12\n	push %r13\n	push %r14\n"                                                            \
		"	mov %rdi, %rbx\n	mov %rsi, %r12\n	mov %rdx, %r13\n	mov %rcx, %r14\n"                                        \
		"	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14\n	" move "\n	.endr\n"                          \
		"1:	mov %r14, %rax\n"                                                                                   \
		"	mov %r12, %rcx\n"                                                                                  \
		"	test %rcx, %rcx\n"                                                                                 \
		"	jz 2f\n"                                                                                           \
		"	call *%rcx\n"                                                                                      \
		"	jmp 3f\n"                                                                                          \
		"2:	syscall\n"                                                                                         \
		"3:	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14\n	" compare "\n	.endr\n"                         \
		"	dec %rbx\n"                                                                                        \
		"	jnz 1b\n"                                                                                          \
		"	xor %eax, %eax\n"                                                                                  \
		"	jmp 5f\n"                                                                                          \
		"4:	mov $1, %eax\n"                                                                                    \
		"5:	" last "\n"                                                                                        \
		"	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbx\n"                                                              \
		"	ret\n.size " name ", .-" name "\n")
LIVE("live_ymm", "vmovdqa 32*\\i(%r13), %ymm\\i",
     "vpcmpeqb 32*\\i(%r13), %ymm\\i, %ymm15\n vpmovmskb %ymm15, %eax\n cmp $-1, %eax\n jne 4f", "vzeroupper");
LIVE("live_xmm", "movdqa 32*\\i(%r13), %xmm\\i",
     "movdqa %xmm\\i, %xmm15\n pcmpeqb 32*\\i(%r13), %xmm15\n pmovmskb %xmm15, %eax\n cmp $0xffff, %eax\n jne 4f", "nop");

static void live(void *entry, long nr, long calls, uint64_t *seed)
{
	uint64_t vector[16][4] __attribute__((aligned(32)));

	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 4; j++)
			vector[i][j] = ukl_random(seed);
	if (__builtin_cpu_supports("avx2"))
		CHECK_EQ(live_ymm(calls, entry, (const uint64_t(*)[4])vector, nr), 0);
	else
		CHECK_EQ(live_xmm(calls, entry, (const uint64_t(*)[4])vector, nr), 0);
}

/*
 * Threads on one processor with different values: one call switches, with the other they are interrupted anywhere. Without
 * rseq, since that is another reason for the ordinary exit after each switch.
 */
static void share_processor(void)
{
	cpu_set_t set;

	if (__rseq_size)
		SYS(syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG));

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	SYS(sched_setaffinity(0, sizeof set, &set));
}

static void *switching(void *at)
{
	uint64_t seed = (uint64_t)(uintptr_t)at;

	share_processor();
	for (int n = 0; n < 6; n++)
		live(n % 3 ? n % 3 == 1 ? call_entry : c_entries[0] : NULL, n < 3 ? SYS_sched_yield : SYS_getppid,
		     n < 3 ? 500 : n == 5 ? 200000 : 50000, &seed);
	return NULL;
}

/* It makes the interrupts that lead to a switch many. */
static void *waking(void *at)
{
	const struct timespec pause = {0, 20000};
	uint64_t seed = 7;

	(void)at;
	share_processor();
	while (!switched) {
		SYS(nanosleep(&pause, NULL));
		live(NULL, SYS_getppid, 1, &seed);
	}
	return NULL;
}

static void switches(void)
{
	pthread_t other[3], waker;

	CHECK_OK(pthread_create(&waker, NULL, waking, NULL));
	for (int n = 0; n < 3; n++)
		CHECK_OK(pthread_create(&other[n], NULL, switching, &workers[n]));
	for (int n = 0; n < 3; n++)
		CHECK_OK(pthread_join(other[n], NULL));
	switched = true;
	CHECK_OK(pthread_join(waker, NULL));
}

/* What the kernel tells by rseq must be so after every call: here, after the one that moved the thread. */
static void migrate(uint64_t *seed)
{
	unsigned cpu = (unsigned)(ukl_random(seed) % (uint64_t)sysconf(_SC_NPROCESSORS_ONLN));
	volatile struct rseq *rseq = (volatile struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	CHECK_EQ(ways[(*seed >> 20) % 3](SYS_sched_setaffinity, 0, sizeof set, (long)&set, 0, 0, 0), 0);
	if (__rseq_size)
		CHECK_EQ(rseq->cpu_id, cpu);
	memset(&set, 0xff, sizeof set);
	CHECK_EQ(ways[(*seed >> 24) % 3](SYS_sched_setaffinity, 0, sizeof set, (long)&set, 0, 0, 0), 0);
}

/* Does the instruction lead to a bypass? */
static int bypasses(void)
{
	long rax = SYS_getppid;
	char carry;

	__asm__ volatile("stc\n\tsyscall\n\tsetc %1" : "+a"(rax), "=q"(carry) : : "rcx", "r11", "memory", "cc");
	return !carry;
}

static void *off_and_on(void *wanted)
{
	int on = *(int *)wanted;

	CHECK_EQ(bypasses(), on);
	CHECK_EQ(call_bypass(0), call_entry != ring3_entry);
	CHECK_EQ(bypasses(), 0);
	CHECK_EQ(call_bypass(1), on);
	CHECK_EQ(bypasses(), on);
	CHECK_EQ(call_bypass(0), call_entry != ring3_entry);
	return NULL;
}

/* Who has it: threads, processes and the program that is executed, whatever others switched. */
static void states(const char *self)
{
	const char *expected = getenv("UKL_BYPASSES");
	int on = expected ? atoi(expected) : bypasses();
	char path[256];
	pthread_t other;
	pid_t child;

	CHECK_EQ(bypasses(), on);
	if (getenv("UKL_AGAIN"))
		_exit(0);
	CHECK_OK(pthread_create(&other, NULL, off_and_on, &on));
	CHECK_OK(pthread_join(other, NULL));
	CHECK_EQ(bypasses(), on);
	child = (pid_t)SYS(fork());
	if (child == 0) {
		CHECK_EQ(bypasses(), on);
		call_bypass(0);
		/* A new program begins as every program. */
		setenv("UKL_AGAIN", "1", 1);
		setenv("UKL_BYPASSES", on ? "1" : "0", 1);
		execl(ukl_self(path, self), self, (char *)NULL);
		_exit(1);
	}
	ukl_wait_exit(child, 0);
}

static volatile sig_atomic_t forks, in_child;

static void fork_here(int number)
{
	long child = trapped(SYS_fork, 0, 0, 0, 0, 0, 0);
	int status = -1;

	(void)number;
	CHECK(child >= 0);
	in_child = child == 0;
	if (in_child)
		return;
	CHECK_EQ(trapped(SYS_wait4, child, (long)&status, 0, 0, 0, 0), child);
	CHECK_EQ(status, 33 << 8);
	forks = forks + 1;
}

/* Another process goes on from wherever the handler interrupted this one, with its registers. */
static void copied_anywhere(void)
{
	struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};

	ukl_handle(SIGALRM, fork_here, SA_RESTART);
	SYS(setitimer(ITIMER_REAL, &often, NULL));
	while (forks < 100) {
		CHECK((forks & 1 ? called_by_c : called)(SYS_getppid, 0, 0, 0, 0, 0, 0) > 0);
		if (in_child)
			_exit(33);
	}
	SYS(setitimer(ITIMER_REAL, &never, NULL));
	/* The last ones came from after the loop. */
	if (in_child)
		_exit(33);
}

static void *work(void *at)
{
	struct worker *self = (struct worker *)at, *next = &workers[(self->number + 1) % THREADS];
	uint64_t seed = (uint64_t)self->number + 1;
	int null_fd = (int)SYS(open("/dev/null", O_WRONLY));
	void *const entry_of[3] = {NULL, call_entry, c_entries[0]};
	sigset_t none, signals;

	mine = self;
	sigemptyset(&none);
	sigemptyset(&signals);
	sigaddset(&signals, SIGRTMIN);
	sigaddset(&signals, SIGRTMIN + 1);
	CHECK_OK(pthread_sigmask(SIG_UNBLOCK, &signals, NULL));
	while (!over) {
		long (*way)(long, long, long, long, long, long, long) = ways[ukl_random(&seed) % 3];
		struct timespec short_time = {0, 1 + (long)(ukl_random(&seed) % 3000000)};
		int word = 7;
		char byte = (char)self->number;
		long got;

		CHECK_EQ(checked("getppid", way(SYS_getppid, 0, 0, 0, 0, 0, 0)) - getppid(), 0);
		CHECK_EQ(checked("write", way(SYS_write, null_fd, (long)&byte, 1, 0, 0, 0)), 1);
		CHECK_EQ(checked("no call", way(9999, 0, 0, 0, 0, 0, 0)), -ENOSYS);
		got = checked("nanosleep", way(SYS_nanosleep, (long)&short_time, 0, 0, 0, 0, 0));
		CHECK(got == 0 || got == -EINTR);
		self->interrupted += got == -EINTR;
		got = checked("futex", way(SYS_futex, (long)&word, FUTEX_WAIT_PRIVATE, 7, (long)&short_time, 0, 0));
		CHECK(got == -ETIMEDOUT || got == -EINTR);
		self->interrupted += got == -EINTR;
		got = checked("ppoll", way(SYS_ppoll, 0, 0, (long)&short_time, (long)&none, sizeof(long), 0));
		CHECK(got == 0 || got == -EINTR);
		self->interrupted += got == -EINTR;
		/* Around the ring: a read that blocks until the thread before has written. */
		CHECK_EQ(checked("write", way(SYS_write, next->pipe_fd[1], (long)&byte, 1, 0, 0, 0)), 1);
		do {
			got = checked("read", way(SYS_read, self->pipe_fd[0], (long)&byte, 1, 0, 0, 0));
			self->interrupted += got == -EINTR;
		} while (got == -EINTR && !over);
		live(entry_of[ukl_random(&seed) % 3], SYS_sched_yield, 20, &seed);
		migrate(&seed);
		self->rounds++;
	}
	/* Whoever still waits for this thread goes on. */
	ukl_write_all(next->pipe_fd[1], "", 1);
	/* A signal that is queued for a thread that ended would be lost on any Linux. */
	for (long long deadline = ukl_now_ms() + 60000; !all_sent || self->handled < self->sent;) {
		CHECK(ukl_now_ms() < deadline);
		ukl_sleep_ms(1);
	}
	return NULL;
}

static void *shoot(void *at)
{
	uint64_t seed = 99;
	union sigval value = {0};

	(void)at;
	while (!over) {
		struct worker *target = &workers[ukl_random(&seed) % THREADS];
		/* One restarts, the other does not. Queued signals are counted, so none may be lost. */
		int error = pthread_sigqueue(target->thread, SIGRTMIN + (int)(ukl_random(&seed) & 1), value);

		CHECK(error == 0 || error == EAGAIN);
		target->sent += error == 0;
		if (ukl_random(&seed) % 3 == 0)
			ukl_sleep_ms(1);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const char *seconds = argc > 1 ? argv[1] : getenv("UKL_STRESS_SECONDS");
	long interrupted = 0, rounds = 0;
	pthread_t shooter;
	sigset_t signals;

	ukl_begin("bypass");
	call_begin();
	states(argv[0]);
	copied_anywhere();
	switches();
	ukl_handle(SIGRTMIN, handle, SA_RESTART);
	ukl_handle(SIGRTMIN + 1, handle, 0);
	sigemptyset(&signals);
	sigaddset(&signals, SIGRTMIN);
	sigaddset(&signals, SIGRTMIN + 1);
	CHECK_OK(pthread_sigmask(SIG_BLOCK, &signals, NULL));
	for (int n = 0; n < THREADS; n++) {
		workers[n].number = n;
		SYS(pipe(workers[n].pipe_fd));
	}
	for (int n = 0; n < THREADS; n++)
		CHECK_OK(pthread_create(&workers[n].thread, NULL, work, &workers[n]));
	CHECK_OK(pthread_create(&shooter, NULL, shoot, NULL));
	ukl_sleep_ms(1000 * (seconds ? atol(seconds) : 3));
	over = true;
	CHECK_OK(pthread_join(shooter, NULL));
	all_sent = true;
	for (int n = 0; n < THREADS; n++) {
		CHECK_OK(pthread_join(workers[n].thread, NULL));
		CHECK_EQ(workers[n].handled, workers[n].sent);
		CHECK(workers[n].rounds > 0);
		CHECK(workers[n].sent > 0);
		interrupted += workers[n].interrupted;
		rounds += workers[n].rounds;
	}
	CHECK(interrupted > 0);
	if (argc > 1)
		fprintf(stderr, "%ld rounds, %ld interrupted\n", rounds, interrupted);
	return ukl_end();
}
