/* SPDX-License-Identifier: Apache-2.0 */
/* A tracer forging the registers of its own child: by each interface, at a signal stop and at a system call's exit. */
#include "attack.h"

#include <elf.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

static const unsigned selectors[] = {0x08, 0x0b, 0x10, 0x13, 0x33};
#define SELECTORS ((long)(sizeof selectors / sizeof *selectors))

enum { SETREGS, SETREGSET, POKEUSER, METHODS };
enum { AT_SIGNAL, AT_SYSCALL, STOPS };
static const char *const method_name[] = {"PTRACE_SETREGS", "PTRACE_SETREGSET", "PTRACE_POKEUSER"};
static const char *const stop_name[] = {"at a signal", "after a system call"};

static pid_t traced_child(void)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0)
			_exit(2);
		raise(SIGSTOP);
		for (int i = 0; i < 1000; i++)
			syscall(SYS_getppid);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) {
		note("no traced child");
		_exit(2);
	}
	return child;
}

static long write_registers(pid_t child, long method, struct user_regs_struct *regs)
{
	struct iovec vector = {regs, sizeof *regs};
	long result = 0;

	switch (method) {
	case SETREGS:
		return ptrace(PTRACE_SETREGS, child, 0, regs);
	case SETREGSET:
		return ptrace(PTRACE_SETREGSET, child, NT_PRSTATUS, &vector);
	default:
		/* One at a time: each must be refused or harmless on its own. */
		result |= ptrace(PTRACE_POKEUSER, child, offsetof(struct user, regs.rip), regs->rip);
		result |= ptrace(PTRACE_POKEUSER, child, offsetof(struct user, regs.rsp), regs->rsp);
		result |= ptrace(PTRACE_POKEUSER, child, offsetof(struct user, regs.eflags), regs->eflags);
		result |= ptrace(PTRACE_POKEUSER, child, offsetof(struct user, regs.orig_rax), regs->orig_rax);
		result |= ptrace(PTRACE_POKEUSER, child, offsetof(struct user, regs.ss), regs->ss);
		result |= ptrace(PTRACE_POKEUSER, child, offsetof(struct user, regs.cs), regs->cs);
		return result;
	}
}

/* Let it run; its own fault handler judges what becomes of it (probe.c). */
static void let_run(pid_t child)
{
	int status;

	for (int stops = 0; stops < 50; stops++) {
		if (ptrace(PTRACE_CONT, child, 0, 0) != 0)
			break;
		if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
			return;
		if (ptrace(PTRACE_CONT, child, 0, WSTOPSIG(status)) != 0)
			break;
		if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
			return;
	}
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
}

static void forged_registers(long argument)
{
	const struct goal *goal = &goals[argument % GOALS];
	unsigned selector = selectors[argument / GOALS % SELECTORS];
	long method = argument / GOALS / SELECTORS % METHODS, stop = argument / GOALS / SELECTORS / METHODS;
	struct user_regs_struct regs;
	pid_t child;
	int status;

	probe_aim(goal);
	child = traced_child();
	if (stop == AT_SYSCALL)
		for (int i = 0; i < 2; i++)
			if (ptrace(PTRACE_SYSCALL, child, 0, 0) != 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
				_exit(2);
	if (ptrace(PTRACE_GETREGS, child, 0, &regs) != 0)
		_exit(2);
	regs.rip = regs.rcx = goal->at;
	regs.rsp = probe_stack();
	regs.eflags |= EFLAGS_AC;
	regs.r11 = regs.eflags;
	regs.orig_rax = (unsigned long)-1;
	regs.cs = selector;
	regs.ss = selector == 0x33 ? 0x2b : selector + 8;
	if (write_registers(child, method, &regs) != 0)
		note("%s: errno %d", method_name[method], errno);
	if (ptrace(PTRACE_GETREGS, child, 0, &regs) == 0 && (regs.cs & 3) != 3)
		note("cs reads back as %#llx", regs.cs);
	let_run(child);
}

/* Segment bases of the kernel's half, and its memory through the child's. */
static void kernel_addresses(long goal)
{
	uintptr_t at = goals[goal].at & ~7ul;
	pid_t child = traced_child();

	MUST_FAIL(ptrace(PTRACE_POKEUSER, child, offsetof(struct user, regs.fs_base), at));
	MUST_FAIL(ptrace(PTRACE_POKEUSER, child, offsetof(struct user, regs.gs_base), at));
	MUST_FAIL(ptrace(PTRACE_ARCH_PRCTL, child, at, 0x1001));
	MUST_FAIL(ptrace(PTRACE_ARCH_PRCTL, child, at, 0x1002));
	MUST_FAIL(ptrace(PTRACE_POKETEXT, child, at, 0x9090909090909090ul));
	MUST_FAIL(ptrace(PTRACE_POKEDATA, child, at, 0x9090909090909090ul));
	errno = 0;
	if (ptrace(PTRACE_PEEKTEXT, child, at, 0) != -1 || errno == 0)
		escaped("PTRACE_PEEKTEXT read %#lx", at);
	kill(child, SIGKILL);
}

/* A system call of the child replaced by sigreturn to a forged frame, while traced. */
static void injected_call(long argument)
{
	const struct goal *goal = &goals[argument % GOALS];
	struct user_regs_struct regs;
	ucontext_t *frame = (ucontext_t *)(probe_stack() - 4096 + 8);
	pid_t child;
	int status;

	probe_aim(goal);
	memset(frame, 0, sizeof *frame);
	frame->uc_mcontext.gregs[REG_RIP] = (greg_t)goal->at;
	frame->uc_mcontext.gregs[REG_RSP] = (greg_t)probe_stack();
	frame->uc_mcontext.gregs[REG_EFL] = 0x202 | EFLAGS_AC;
	frame->uc_mcontext.gregs[REG_CSGSFS] = (greg_t)(0x001bul << 48 | 0x13);
	child = traced_child();
	if (ptrace(PTRACE_SYSCALL, child, 0, 0) != 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		_exit(2);
	if (ptrace(PTRACE_GETREGS, child, 0, &regs) != 0)
		_exit(2);
	regs.orig_rax = SYS_rt_sigreturn;
	regs.rsp = (uintptr_t)frame;
	if (ptrace(PTRACE_SETREGS, child, 0, &regs) != 0)
		note("PTRACE_SETREGS: errno %d", errno);
	let_run(child);
}

/* A child that executes another program under the tracer: the forged state must not survive, nor be given then. */
static void forged_before_exec(long unused)
{
	struct user_regs_struct regs;
	pid_t child = fork();
	int status;

	(void)unused;
	if (child == 0) {
		char *const arguments[] = {here.self, NULL}, *const environment[] = {"UKL_PROBE=1", NULL};

		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		execve(here.self, arguments, environment);
		_exit(2);
	}
	waitpid(child, &status, 0);
	ptrace(PTRACE_CONT, child, 0, 0);
	waitpid(child, &status, 0); /* SIGTRAP after exec */
	if (!WIFSTOPPED(status) || ptrace(PTRACE_GETREGS, child, 0, &regs) != 0)
		_exit(2);
	if ((regs.cs & 3) != 3)
		escaped("a program starts with CS %#llx", regs.cs);
	regs.cs = 0x13;
	if (ptrace(PTRACE_SETREGS, child, 0, &regs) != 0)
		note("PTRACE_SETREGS: errno %d", errno);
	ptrace(PTRACE_CONT, child, 0, 0);
	waitpid(child, &status, 0);
	if (WIFSTOPPED(status)) {
		note("stopped by signal %d", WSTOPSIG(status));
		kill(child, SIGKILL);
	} else if (WIFEXITED(status) && WEXITSTATUS(status) == PROBE_CPL0) {
		escaped("the new program runs at CPL 0");
	}
}

void tracing_attempts(void)
{
	for (long stop = 0; stop < STOPS; stop++)
		for (long method = 0; method < METHODS; method++)
			for (long selector = 0; selector < SELECTORS; selector++)
				for (long goal = 0; goal < GOALS; goal++)
					try_it(forged_registers, ((stop * METHODS + method) * SELECTORS + selector) * GOALS + goal,
					       "%s %s with cs=%#x to %s", method_name[method], stop_name[stop],
					       selectors[selector], goals[goal].name);
	for (long goal = 0; goal < GOALS; goal++)
		try_it(injected_call, goal, "traced child made to sigreturn with cs=0x13 to %s", goals[goal].name);
	for (long goal = GOAL_APP; goal < GOALS; goal++)
		try_it(kernel_addresses, goal, "bases and memory of a traced child in %s", goals[goal].name);
	try_it(forged_before_exec, 0, "registers of a traced child at exec");
}
