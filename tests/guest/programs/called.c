/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls by calling, as assembly may and as C does: what registers keep, errors, signals that interrupt and restart
 * them, a stack that faults on the way in and out, processes and threads made so, a debugger that steps through one,
 * tracing, seccomp, and functions of the kernel. In ring 3 the call leads to `syscall`, so the output is the same.
 */
#include "uklcall.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>

static long (*call)(long, long, long, long, long, long, long) = called;
static volatile sig_atomic_t handled;

static void handle(int number)
{
	handled += number == SIGUSR1;
}

/*
 * Every register but RAX, RCX, R11 with a value of its own, one system call by RSI's entry, and what became of them: 0 when
 * nothing changed, otherwise how many did. `nr` takes no pointer in its arguments.
 */
long keep_registers(long nr, void *entry, long *result);
__asm__(".text\n"
	".globl keep_registers\n"
	".type keep_registers, @function\n"
	"keep_registers:\n"
	"	push %rbx\n	push %rbp\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
	"	push %rdx\n"
	"	mov %rdi, %rax\n	mov %rsi, %rcx\n"
	"	mov $-101, %rdi\n	mov $102, %rsi\n	mov $103, %rdx\n	mov $104, %r10\n	mov $105, %r8\n	mov $106, %r9\n"
	"	mov $107, %rbx\n	mov $108, %rbp\n	mov $109, %r12\n	mov $110, %r13\n	mov $111, %r14\n	mov $112, %r15\n"
	"	mov %rsp, %r11\n	push %r11\n	push %r11\n"
	"	call *%rcx\n"
	"	pop %rcx\n	pop %r11\n	sub %rsp, %rcx\n"
	"	add $101, %rdi\n	sub $102, %rsi\n	sub $103, %rdx\n	sub $104, %r10\n	sub $105, %r8\n	sub $106, %r9\n"
	"	sub $107, %rbx\n	sub $108, %rbp\n	sub $109, %r12\n	sub $110, %r13\n	sub $111, %r14\n	sub $112, %r15\n"
	"	or %rsi, %rdi\n	or %rdx, %rdi\n	or %r10, %rdi\n	or %r8, %rdi\n	or %r9, %rdi\n	or %rbx, %rdi\n"
	"	or %rbp, %rdi\n	or %r12, %rdi\n	or %r13, %rdi\n	or %r14, %rdi\n	or %r15, %rdi\n	or %rcx, %rdi\n"
	"	pop %rdx\n"
	"	mov %rax, (%rdx)\n"
	"	mov %rdi, %rax\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n	pop %rbx\n"
	"	ret\n"
	".size keep_registers, .-keep_registers\n");

static void registers(void)
{
	long result = 0;

	CHECK_EQ(keep_registers(SYS_getppid, call_entry, &result), 0);
	CHECK_EQ(result - getppid(), 0);
	CHECK_EQ(keep_registers(SYS_close, call_entry, &result), 0);
	CHECK_EQ(result, -EBADF);
	CHECK_EQ(keep_registers(SYS_sched_yield, call_entry, &result), 0);
	CHECK_EQ(result, 0);
	CHECK_EQ(keep_registers(100000, call_entry, &result), 0);
	CHECK_EQ(result, -ENOSYS);
	CHECK_EQ(keep_registers(-1, call_entry, &result), 0);
	CHECK_EQ(result, -ENOSYS);
	puts("registers are kept, and wrong numbers are errors");
}

static void *kick(void *thread)
{
	ukl_sleep_ms(100);
	CHECK_OK(pthread_kill(*(pthread_t *)thread, SIGUSR1));
	return NULL;
}

static void *kick_and_write(void *at)
{
	int *fd = (int *)at;
	sigset_t usr1;

	/* The thread that waits shall take it. */
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	CHECK_OK(pthread_sigmask(SIG_BLOCK, &usr1, NULL));
	ukl_sleep_ms(100);
	CHECK(kill(getpid(), SIGUSR1) == 0);
	ukl_sleep_ms(100);
	ukl_write_all(*fd, "x", 1);
	return NULL;
}

static void interrupted(void)
{
	struct timespec time = {30, 0}, left = {0, 0};
	pthread_t self = pthread_self(), other;
	int pipe_fd[2];
	char byte = 0;

	SYS(pipe(pipe_fd));
	handled = 0;
	ukl_handle(SIGUSR1, handle, 0);
	CHECK_OK(pthread_create(&other, NULL, kick, &self));
	CHECK_EQ(call(SYS_read, pipe_fd[0], (long)&byte, 1, 0, 0, 0), -EINTR);
	CHECK_OK(pthread_join(other, NULL));
	CHECK_OK(pthread_create(&other, NULL, kick, &self));
	CHECK_EQ(call(SYS_nanosleep, (long)&time, (long)&left, 0, 0, 0, 0), -EINTR);
	CHECK_OK(pthread_join(other, NULL));
	CHECK(left.tv_sec > 0 && left.tv_sec < 30);
	CHECK_EQ(handled, 2);

	ukl_handle(SIGUSR1, handle, SA_RESTART);
	CHECK_OK(pthread_create(&other, NULL, kick_and_write, &pipe_fd[1]));
	CHECK_EQ(call(SYS_read, pipe_fd[0], (long)&byte, 1, 0, 0, 0), 1);
	CHECK_OK(pthread_join(other, NULL));
	CHECK_EQ(byte, 'x');
	CHECK_EQ(handled, 3);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	puts("signals interrupt and restart");
}

static void stop_and_continue(pid_t child)
{
	ukl_sleep_ms(100);
	SYS(kill(child, SIGSTOP));
	ukl_sleep_ms(50);
	SYS(kill(child, SIGCONT));
}

/* Without a handler a stop interrupts, and the kernel goes on by restart_syscall(2). */
static void stopped(void)
{
	struct timespec time = {0, 400000000};
	pid_t child = (pid_t)SYS(fork());

	if (child == 0)
		_exit(call(SYS_nanosleep, (long)&time, 0, 0, 0, 0, 0) == 0 ? 7 : 1);
	stop_and_continue(child);
	ukl_wait_exit(child, 7);
	puts("a stop in between is no error");
}

/* On the stack at `top`: the result of madvise(2), which takes away the page with the return address. */
long discard_stack(void *entry, void *page, void *top);
__asm__(".text\n"
	".globl discard_stack\n"
	".type discard_stack, @function\n"
	"discard_stack:\n"
	"	push %rbp\n"
	"	mov %rsp, %rbp\n"
	"	mov %rdx, %rsp\n"
	"	mov %rdi, %rcx\n"
	"	mov %rsi, %rdi\n"
	"	mov $4096, %esi\n"
	"	mov $4, %edx\n"		/* MADV_DONTNEED */
	"	mov $28, %eax\n"	/* SYS_madvise */
	"	call *%rcx\n"
	"	mov %rbp, %rsp\n"
	"	pop %rbp\n"
	"	ret\n"
	".size discard_stack, .-discard_stack\n");

static void stack_faults(void)
{
	char *stack = (char *)mmap(NULL, 8 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(stack != MAP_FAILED);
	/* Pages that nothing has touched yet: the call itself faults. */
	for (int page = 1; page < 8; page++)
		CHECK_EQ(discard_stack(call_entry, stack, stack + ((page + 1) << 12)), 0);
	/* The return address is at the end of a page that is there no more. Only the kernel's own entry knows another. */
	if (call_entry != ring3_entry)
		for (int n = 0; n < 100; n++)
			CHECK_EQ(discard_stack(call_entry, stack + 4096, stack + 8192), 0);
	munmap(stack, 8 << 12);
	puts("a stack may fault");
}

static void processes(void)
{
	long child = call(SYS_fork, 0, 0, 0, 0, 0, 0);

	CHECK(child >= 0);
	if (child == 0)
		_exit(call(SYS_getppid, 0, 0, 0, 0, 0, 0) == getppid() ? 11 : 1);
	ukl_wait_exit((pid_t)child, 11);
	child = call(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0);
	CHECK(child >= 0);
	if (child == 0)
		call(SYS_exit_group, 12, 0, 0, 0, 0, 0);
	ukl_wait_exit((pid_t)child, 12);
	puts("processes begin and end");
}

/* A parent steps a child through calls, one instruction at a time. */
static void stepped(void)
{
	pid_t child = (pid_t)SYS(fork());
	long steps = 0;
	int status;

	if (child == 0) {
		long sum = 0;

		SYS(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
		raise(SIGSTOP);
		for (int n = 0; n < 5; n++)
			sum += call(SYS_getppid, 0, 0, 0, 0, 0, 0) == getppid();
		call(SYS_exit_group, sum == 5 ? 21 : 1, 0, 0, 0, 0, 0);
	}
	CHECK_EQ(waitpid(child, &status, 0) - child, 0);
	while (!WIFEXITED(status)) {
		CHECK(WIFSTOPPED(status));
		CHECK(WSTOPSIG(status) == SIGSTOP || WSTOPSIG(status) == SIGTRAP);
		SYS(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL));
		CHECK_EQ(waitpid(child, &status, 0) - child, 0);
		steps++;
	}
	CHECK_EQ(WEXITSTATUS(status), 21);
	CHECK(steps > 50);
	puts("a debugger steps through");
}

/* What strace does: each system call of the child stops twice, and the number can be seen and changed. */
static void traced(void)
{
	pid_t child = (pid_t)SYS(fork());
	int status, calls = 0, inside = 0;

	if (child == 0) {
		SYS(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
		raise(SIGSTOP);
		for (int n = 0; n < 10; n++) {
			if (call(SYS_getuid, 1, 2, 3, 4, 5, 6) != 4711)
				_exit(1);
			if (trapped(SYS_getuid, 1, 2, 3, 4, 5, 6) != 4711)
				_exit(1);
		}
		_exit(22);
	}
	CHECK_EQ(waitpid(child, &status, 0) - child, 0);
	SYS(ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)PTRACE_O_TRACESYSGOOD));
	while (!WIFEXITED(status)) {
		SYS(ptrace(PTRACE_SYSCALL, child, NULL, NULL));
		CHECK_EQ(waitpid(child, &status, 0) - child, 0);
		if (WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80)) {
			struct user_regs_struct regs;

			SYS(ptrace(PTRACE_GETREGS, child, NULL, &regs));
			if (regs.orig_rax == SYS_getuid) {
				CHECK(regs.rdi == 1 && regs.rsi == 2 && regs.rdx == 3);
				CHECK(regs.r10 == 4 && regs.r8 == 5 && regs.r9 == 6);
				calls++;
				if (inside) {
					regs.rax = 4711;
					SYS(ptrace(PTRACE_SETREGS, child, NULL, &regs));
				}
			}
			inside = !inside;
		}
	}
	CHECK_EQ(WEXITSTATUS(status), 22);
	CHECK_EQ(calls, 40);
	puts("a tracer sees each call");
}

static void filtered(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getuid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 42),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {4, code};
	pid_t child = (pid_t)SYS(fork());

	if (child == 0) {
		SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
		CHECK_EQ(call(SYS_getuid, 0, 0, 0, 0, 0, 0), -42);
		CHECK_EQ(trapped(SYS_getuid, 0, 0, 0, 0, 0, 0), -42);
		_exit(23);
	}
	ukl_wait_exit(child, 23);
	puts("seccomp filters each call");
}

/* The return address of a call by C is on the stack, and stays there while a handler runs on the same stack. */
static void handle_deep(int number)
{
	volatile char deep[4096];

	(void)number;
	memset((char *)deep, 0xcc, sizeof deep);
	for (int n = 0; n < 3; n++)
		CHECK_EQ(called_by_c(SYS_getppid, 0, 0, 0, 0, 0, 0) - getppid(), 0);
	handled = handled + 1;
}

static void nested(void)
{
	struct timespec time = {0, 100000000};
	pthread_t self = pthread_self(), other;

	for (int flags = 0; flags <= SA_RESTART; flags += SA_RESTART) {
		ukl_handle(SIGUSR1, handle_deep, flags);
		handled = 0;
		CHECK_OK(pthread_create(&other, NULL, kick, &self));
		/* poll(2) is never restarted. */
		CHECK_EQ(called_by_c(SYS_poll, 0, 0, 30000, 0, 0, 0), -EINTR);
		CHECK_OK(pthread_join(other, NULL));
		CHECK_EQ(handled, 1);
	}
	CHECK_EQ(called_by_c(SYS_nanosleep, (long)&time, 0, 0, 0, 0, 0), 0);
	puts("handlers call, too");
}

/* Functions of the kernel's: that take arguments, sleep, are interrupted, and are called again. */
static void kernel_functions(void)
{
	if (call_entry != ring3_entry) {
		unsigned long by = call_symbol("__ukl_call"), root = call_symbol("int_sqrt"), get = call_symbol("ksys_read");
		unsigned long doze = call_symbol("schedule_timeout_interruptible"), sleep = call_symbol("hrtimer_nanosleep");
		pthread_t self = pthread_self(), other;
		int pipe_fd[2];
		char byte = 0;
		pid_t child;

		CHECK(by && root && get && doze && sleep);
		SYS(pipe(pipe_fd));
		CHECK_EQ(call_kernel(by, root, 1 << 20, 0, 0), 1 << 10);
		CHECK_EQ(call_kernel(by, sleep, 1000000, 1, CLOCK_MONOTONIC), 0);
		CHECK_EQ(call_kernel(by, get, 12345, (long)&byte, 1), -EBADF);
		handled = 0;
		CHECK_OK(pthread_create(&other, NULL, kick, &self));
		/* In jiffies, some seconds: it ends early, with what is left. */
		CHECK(call_kernel(by, doze, 3000, 0, 0) > 0);
		CHECK_OK(pthread_join(other, NULL));
		CHECK_OK(pthread_create(&other, NULL, kick, &self));
		CHECK_EQ(call_kernel(by, sleep, 30000000000, 1, CLOCK_MONOTONIC), -EINTR);
		CHECK_OK(pthread_join(other, NULL));
		CHECK_OK(pthread_create(&other, NULL, kick_and_write, &pipe_fd[1]));
		CHECK_EQ(call_kernel(by, get, pipe_fd[0], (long)&byte, 1), 1);
		CHECK_OK(pthread_join(other, NULL));
		CHECK_EQ(byte, 'x');
		CHECK_EQ(handled, 3);
		ukl_handle(SIGUSR1, handle, 0);
		CHECK_OK(pthread_create(&other, NULL, kick, &self));
		CHECK_EQ(call_kernel(by, get, pipe_fd[0], (long)&byte, 1), -EINTR);
		CHECK_OK(pthread_join(other, NULL));
		/* restart_syscall(2) would go on with a sleep that a stop interrupted; here there is no system call. */
		child = (pid_t)SYS(fork());
		if (child == 0)
			_exit(call_kernel(by, sleep, 30000000000, 1, CLOCK_MONOTONIC) == -EINTR ? 24 : 1);
		stop_and_continue(child);
		ukl_wait_exit(child, 24);
	}
	puts("functions of the kernel are called");
}

int main(int argc, char **argv)
{
	(void)argc, (void)argv;
	ukl_begin("called");
	call_begin();
	registers();
	for (int by_c = 0; by_c < 2; by_c++) {
		puts(by_c ? "by C:" : "by assembly:");
		call = by_c ? called_by_c : called;
		interrupted();
		stopped();
		processes();
		stepped();
		traced();
		filtered();
	}
	stack_faults();
	nested();
	kernel_functions();
	return ukl_end();
}
