/* SPDX-License-Identifier: Apache-2.0 */
/* fork with private data: .data, .bss, heap, stack and TLS are the child's own; wait statuses; many children; groups. */
#include "uklcheck.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define CHILDREN 50
#define HEAP_WORDS (1u << 20)

static uint64_t data[4096] = {1, 2, 3};
static uint64_t bss[300000];
static __thread int local = 5;

struct shared {
	volatile int step;
	volatile uint64_t seen[8];
};

static struct shared *shared_page(void)
{
	void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(map != MAP_FAILED);
	return map;
}

static void until(struct shared *shared, int step)
{
	long long deadline = ukl_now_ms() + 120000;

	while (shared->step < step) {
		CHECK(ukl_now_ms() < deadline);
		sched_yield();
	}
}

static void private_data(void)
{
	struct shared *shared = shared_page();
	uint64_t *heap = malloc(HEAP_WORDS * sizeof *heap), stack[64];
	pid_t child;

	CHECK(heap != NULL);
	for (uint32_t i = 0; i < HEAP_WORDS; i++)
		heap[i] = i;
	for (int i = 0; i < 300000; i++)
		bss[i] = (uint64_t)i * 3;
	memset(stack, 0x11, sizeof stack);

	child = (pid_t)SYS(fork());
	if (child == 0) {
		ukl_check_mode();
		/* First what the parent had, then changes of our own, then whether the parent's changes stay away. */
		CHECK(data[2] == 3 && bss[299999] == 299999 * 3 && heap[12345] == 12345 && local == 5);
		for (uint32_t i = 0; i < HEAP_WORDS; i++)
			heap[i] = ~(uint64_t)i;
		memset(bss, 0xcc, sizeof bss);
		data[2] = 33;
		local = 55;
		memset(stack, 0x22, sizeof stack);
		shared->step = 1;
		until(shared, 2);
		for (uint32_t i = 0; i < HEAP_WORDS; i++)
			CHECK(heap[i] == ~(uint64_t)i);
		CHECK(data[2] == 33 && local == 55 && bss[0] == 0xccccccccccccccccULL && stack[63] == 0x2222222222222222ULL);
		_exit(21);
	}
	until(shared, 1);
	for (uint32_t i = 0; i < HEAP_WORDS; i++)
		CHECK(heap[i] == i);
	for (int i = 0; i < 300000; i++)
		CHECK(bss[i] == (uint64_t)i * 3);
	CHECK(data[2] == 3 && local == 5 && stack[0] == 0x1111111111111111ULL);
	data[2] = 333;
	memset(bss, 0, sizeof bss);
	heap[0] = 99;
	shared->step = 2;
	ukl_wait_exit(child, 21);
	data[2] = 3;
	free(heap);
	SYS(munmap(shared, 4096));
	puts(".data, .bss, heap, stack, TLS: private to each side");
}

/* Grandchildren write the same page at every level. */
static int generations(int depth)
{
	pid_t child;

	data[7] = (uint64_t)depth;
	if (depth == 0)
		return 0;
	child = (pid_t)SYS(fork());
	if (child == 0)
		_exit(generations(depth - 1));
	ukl_wait_exit(child, depth - 1);
	CHECK_EQ(data[7], depth);
	return depth;
}

static void family(void)
{
	pid_t child = (pid_t)SYS(fork());

	if (child == 0)
		_exit(generations(12));
	ukl_wait_exit(child, 12);
	CHECK_EQ(data[7], 0);
	puts("12 generations: ok");
}

static void many_children(void)
{
	struct shared *shared = shared_page();
	pid_t child[CHILDREN];
	int sum = 0;

	for (int i = 0; i < CHILDREN; i++) {
		child[i] = (pid_t)SYS(fork());
		if (child[i] == 0) {
			ukl_check_mode();
			/* All of them live at once. */
			until(shared, 1);
			bss[i] = (uint64_t)i + 1;
			for (int j = 0; j < CHILDREN; j++)
				CHECK_EQ(bss[j], j == i ? i + 1 : 0);
			_exit(i + 1);
		}
	}
	shared->step = 1;
	for (int i = 0; i < CHILDREN; i++) {
		int status = 0;
		pid_t got = (pid_t)SYS(wait(&status)), j;

		for (j = 0; j < CHILDREN && child[j] != got; j++)
			;
		CHECK(j < CHILDREN);
		CHECK(WIFEXITED(status));
		CHECK_EQ(WEXITSTATUS(status), j + 1);
		sum += WEXITSTATUS(status);
	}
	CHECK_FAILS(wait(NULL), ECHILD);
	SYS(munmap(shared, 4096));
	printf("%d children at once: sum of statuses %d\n", CHILDREN, sum);
	for (int i = 0; i < 200; i++) {
		pid_t one = (pid_t)SYS(fork());

		if (one == 0)
			_exit(i % 50);
		ukl_wait_exit(one, i % 50);
	}
	puts("200 children in turn: ok");
}

static void statuses(void)
{
	static const int deadly[] = {SIGKILL, SIGTERM, SIGABRT, SIGALRM, SIGUSR1, SIGHUP};
	pid_t child;
	int status;
	siginfo_t info;

	for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++) {
		child = (pid_t)SYS(fork());
		if (child == 0)
			for (;;)
				pause();
		SYS(kill(child, deadly[i]));
		ukl_wait_signal(child, deadly[i]);
	}

	child = (pid_t)SYS(fork());
	if (child == 0) {
		volatile unsigned long spin = 0;

		for (;;)
			spin++;
	}
	CHECK_EQ(waitpid(child, &status, WNOHANG), 0);
	SYS(kill(child, SIGSTOP));
	CHECK_EQ(waitpid(child, &status, WUNTRACED) - child, 0);
	CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	SYS(kill(child, SIGCONT));
	CHECK_EQ(waitpid(child, &status, WCONTINUED) - child, 0);
	CHECK(WIFCONTINUED(status));
	SYS(kill(child, SIGKILL));
	memset(&info, 0, sizeof info);
	SYS(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT));
	CHECK(info.si_pid == child && info.si_code == CLD_KILLED && info.si_status == SIGKILL);
	ukl_wait_signal(child, SIGKILL);

	child = (pid_t)SYS(fork());
	if (child == 0)
		exit(300); /* only the low eight bits arrive */
	ukl_wait_exit(child, 300 & 0xff);
	puts("exit, signals, stop, continue: right statuses");
}

static volatile sig_atomic_t reaped;

static void on_child(int number)
{
	(void)number;
	reaped++;
}

static void child_signal(void)
{
	sigset_t set, old;
	pid_t child;

	ukl_handle(SIGCHLD, on_child, SA_RESTART);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	SYS(sigprocmask(SIG_BLOCK, &set, &old));
	child = (pid_t)SYS(fork());
	if (child == 0)
		_exit(4);
	while (!reaped)
		CHECK_FAILS(sigsuspend(&old), EINTR);
	SYS(sigprocmask(SIG_SETMASK, &old, NULL));
	CHECK_EQ(reaped, 1);
	ukl_wait_exit(child, 4);
	ukl_handle(SIGCHLD, SIG_DFL, 0);
	puts("SIGCHLD: delivered once");
}

/* Descriptors are shared, offsets too; pending signals and timers are not inherited. */
static void inheritance(void)
{
	char path[256], text[8] = "";
	int fd = (int)SYS(open(ukl_tmp(path, "fork"), O_RDWR | O_CREAT | O_EXCL, 0600));
	struct rusage usage;
	pid_t child;

	SYS(unlink(path));
	alarm(100);
	child = (pid_t)SYS(fork());
	if (child == 0) {
		CHECK_EQ(alarm(0), 0);
		CHECK_EQ(write(fd, "child", 5), 5);
		SYS(close(fd));
		_exit(0);
	}
	ukl_wait_exit(child, 0);
	CHECK(alarm(0) > 0);
	CHECK_EQ(lseek(fd, 0, SEEK_CUR), 5);
	CHECK_EQ(pread(fd, text, 5, 0), 5);
	CHECK_STR(text, "child");
	SYS(close(fd));
	SYS(getrusage(RUSAGE_CHILDREN, &usage));
	CHECK(usage.ru_minflt > 0);
	puts("descriptors shared, timers not: ok");
}

/* clone(2) with shared memory, called raw, as libc's own vfork and posix_spawn do. */
static int in_clone(void *argument)
{
	ukl_check_mode();
	*(volatile int *)argument = 1234;
	return 17;
}

static void shared_memory_clone(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	volatile int written = 0;
	pid_t child = (pid_t)SYS(clone(in_clone, stack + sizeof stack, CLONE_VM | SIGCHLD, (void *)&written));

	ukl_wait_exit(child, 17);
	CHECK_EQ(written, 1234);
	child = (pid_t)SYS(clone(in_clone, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, (void *)&written));
	ukl_wait_exit(child, 17);
	written = 0;
	child = (pid_t)SYS(clone(in_clone, stack + sizeof stack, SIGCHLD, (void *)&written));
	ukl_wait_exit(child, 17);
	CHECK_EQ(written, 0);
	child = (pid_t)SYS(syscall(SYS_fork));
	if (child == 0)
		syscall(SYS_exit_group, 3);
	ukl_wait_exit(child, 3);
	puts("clone with and without shared memory: ok");
}

static int exits;

static void at_exit(void)
{
	_exit(exits == 1 ? 66 : 1);
}

static void exit_handlers(void)
{
	pid_t child = (pid_t)SYS(fork());

	if (child == 0) {
		CHECK_EQ(atexit(at_exit), 0);
		exits = 1;
		exit(0);
	}
	ukl_wait_exit(child, 66);
	puts("atexit in a child: ok");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	ukl_begin("fork");
	private_data();
	memset(bss, 0, sizeof bss);
	family();
	many_children();
	statuses();
	child_signal();
	inheritance();
	shared_memory_clone();
	exit_handlers();
	return ukl_end();
}
