/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forged signal frames: sigreturn restores what the program wrote there, and UKL marks application mode in the saved CS. Also
 * everything else by which the kernel learns an address to go to: handlers, restorers, restartable sequences, threads.
 */
#include "attack.h"

#include <linux/sched.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/time.h>

static const unsigned selectors[] = {0x08, 0x0b, 0x10, 0x13, 0x33};
static const unsigned stacks[] = {0x2b, 0x18, 0x1b};
#define SELECTORS ((long)(sizeof selectors / sizeof *selectors))
#define STACKS ((long)(sizeof stacks / sizeof *stacks))

static uint16_t forged_cs, forged_ss;
static uintptr_t forged_rip;

static void forge(int number, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number;
	(void)info;
	regs[REG_RIP] = (greg_t)forged_rip;
	regs[REG_RSP] = (greg_t)probe_stack();
	regs[REG_EFL] |= EFLAGS_AC;
	/* cs, gs, fs, ss, 16 bits each. */
	regs[REG_CSGSFS] = (greg_t)((uint64_t)forged_ss << 48 | forged_cs);
}

static void install(int number, void *handler, int flags)
{
	struct sigaction action;

	memset(&action, 0, sizeof action);
	action.sa_sigaction = (void (*)(int, siginfo_t *, void *))handler;
	action.sa_flags = flags | SA_SIGINFO;
	sigaction(number, &action, NULL);
}

static void forged_frame(long argument)
{
	const struct goal *goal = &goals[argument % GOALS];

	forged_rip = goal->at;
	forged_cs = (uint16_t)selectors[argument / GOALS % SELECTORS];
	forged_ss = (uint16_t)stacks[argument / GOALS / SELECTORS % STACKS];
	probe_aim(goal);
	install(SIGUSR1, (void *)forge, 0);
	raise(SIGUSR1);
	escaped("the signal frame was not used");
}

/* The same after the oddest personality. */
static void forged_in_personality(long argument)
{
	/* Every flag there is, once as PER_LINUX and once as PER_LINUX32. */
	syscall(SYS_personality, 0x0fffff00 | (argument >= GOALS ? 0x0008 : 0));
	forged_frame(3 * GOALS + argument % GOALS);
}

/*
 * The 32-bit signal frame, whose segments are restored by code of its own; reached by int 0x80 with the stack below 4 GiB.
 * Layout: struct sigcontext_32 of asm/sigcontext.h, which is not in the headers of 64-bit programs.
 */
struct context32 {
	uint16_t gs, gsh, fs, fsh, es, esh, ds, dsh;
	uint32_t di, si, bp, sp, bx, dx, cx, ax, trapno, err, ip;
	uint16_t cs, csh;
	uint32_t flags, sp_at_signal;
	uint16_t ss, ssh;
	uint32_t fpstate, oldmask, cr2;
};

struct low_page {
	unsigned char code[256];
	struct context32 context;
	uint32_t more[64];
};

static void forged_frame32(long argument)
{
	struct low_page *low = mmap(NULL, 65536, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct context32 *context;
	uint64_t entry = (uintptr_t)&probe_entry;

	if (low == MAP_FAILED) {
		note("no low page");
		_exit(2);
	}
	/* movabs $probe_entry, %rax; jmp *%rax: the goal must be below 4 GiB too. */
	memcpy(low->code, "\x48\xb8", 2);
	memcpy(low->code + 2, &entry, 8);
	memcpy(low->code + 10, "\xff\xe0", 2);
	context = &low->context;
	context->ip = (uint32_t)(uintptr_t)low->code;
	context->sp = (uint32_t)(uintptr_t)low + 32768;
	context->cs = (uint16_t)selectors[argument % SELECTORS];
	context->ss = (uint16_t)stacks[argument / SELECTORS % STACKS];
	context->ds = context->es = 0x2b;
	context->flags = 0x40202;
	probe_aim(&(struct goal){"", (uintptr_t)low->code, 0});
	/* sigreturn takes the frame from 8 below the stack pointer, whose first 8 bytes are the return address and the signal. */
	__asm__ volatile("mov %0, %%rsp\n\tint $0x80" : : "r"(context), "a"(119) : "memory");
	escaped("sigreturn came back");
}

/* A 16-bit stack segment makes iret take the detour by the espfix stack, which the kernel's own tests call fragile. */
static void sixteen_bit_stack(long unused)
{
	struct {
		unsigned entry_number, base_addr, limit;
		unsigned bits;
	} entry = {.entry_number = 5, .limit = 0xffff, .bits = 0x40};

	(void)unused;
	if (syscall(SYS_modify_ldt, 0x11, &entry, sizeof entry) != 0)
		note("modify_ldt: errno %d", errno);
	forged_rip = (uintptr_t)&probe_entry;
	forged_cs = 0x33;
	forged_ss = 5 << 3 | 7;
	probe_aim(&goals[GOAL_OWN]);
	install(SIGUSR1, (void *)forge, 0);
	raise(SIGUSR1);
}

enum { HANDLER, RESTORER };

/* An address of the kernel's half as handler, or as what the handler returns to. */
static void kernel_handler(long argument)
{
	const struct goal *goal = &goals[argument % GOALS];
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		unsigned long mask;
	} action = {(void *)goal->at, SA_SIGINFO | 0x04000000ul, (void *)&probe_landing, 0};

	probe_aim(goal);
	if (argument / GOALS == RESTORER) {
		/*
		 * movabs $probe_landing, %rax; mov %rax, 8(%rsp); ret: the handler returns to the restorer, and the restorer,
		 * should it run, to where that shows.
		 */
		uintptr_t landing = (uintptr_t)&probe_landing;
		unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (code == MAP_FAILED)
			_exit(2);
		memcpy(code, "\x48\xb8", 2);
		memcpy(code + 2, &landing, 8);
		memcpy(code + 10, "\x48\x89\x44\x24\x08\xc3", 6);
		action.handler = code;
		action.restorer = (void *)goal->at;
	}
	if (syscall(SYS_rt_sigaction, SIGUSR1, &action, NULL, 8) != 0)
		note("rt_sigaction: errno %d", errno);
	syscall(SYS_kill, getpid(), SIGUSR1);
	note("the signal passed by");
}

/* Frames to be written to the kernel's half. */
static void kernel_stack_frame(long goal)
{
	stack_t stack = {.ss_sp = (void *)(goals[goal].at & ~15ul), .ss_size = 65536};

	probe_aim(&goals[goal]);
	if (sigaltstack(&stack, NULL) != 0)
		note("sigaltstack: errno %d", errno);
	install(SIGUSR1, (void *)forge, SA_ONSTACK);
	raise(SIGUSR1);
	escaped("the kernel wrote a signal frame to %#lx", goals[goal].at);
}

/* sigreturn with the frame itself in the kernel's half. */
static void kernel_frame(long goal)
{
	probe_aim(&goals[goal]);
	__asm__ volatile("mov %0, %%rsp\n\tsyscall" : : "r"(goals[goal].at), "a"(SYS_rt_sigreturn) : "memory");
	escaped("sigreturn came back");
}

/*
 * Restartable sequences: the kernel itself sets rip to an abort address, which it must check. libc has registered an area
 * already, which is taken away first.
 */
struct sequence {
	uint32_t version, flags;
	uint64_t start, length, abort;
} __attribute__((aligned(32)));

struct sequence_area {
	uint32_t cpu_id_start, cpu_id;
	uint64_t sequence;
	uint32_t flags, node, concurrency, padding;
} __attribute__((aligned(32)));

static void restartable(long goal)
{
	static struct sequence_area area;
	static struct sequence sequence;
	struct itimerval every = {{0, 1000}, {0, 1000}};
	uint64_t start;
	long registered, count = 200000000;

	probe_aim(&goals[goal]);
	install(SIGALRM, (void *)(uintptr_t)&forge, 0);
	forged_cs = 0x33;
	forged_ss = 0x2b;
	forged_rip = (uintptr_t)&probe_entry;
	for (uint32_t size = 32; size <= 256; size += 32)
		if (syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, size, RSEQ_FLAG_UNREGISTER, RSEQ_SIG) == 0)
			break;
	registered = syscall(SYS_rseq, &area, sizeof area, 0, RSEQ_SIG);
	if (registered != 0) {
		note("rseq: errno %d", errno);
		return;
	}
	__asm__ volatile("lea 1f(%%rip), %0\n1:" : "=r"(start));
	sequence = (struct sequence){0, 0, start, 4096, goals[goal].at};
	area.sequence = (uintptr_t)&sequence;
	setitimer(ITIMER_REAL, &every, NULL);
	__asm__ volatile("1:	dec %0\n\tjnz 1b" : "+r"(count) : : "cc");
	note("the sequence was not aborted");
}

/* Threads and processes whose first stack pointer, thread area or cleared word lies in the kernel's half. */
static int in_thread(void *unused)
{
	(void)unused;
	return 0;
}

static void kernel_thread_pointers(long goal)
{
	struct clone_args args;
	uintptr_t at = goals[goal].at & ~15ul;
	int status;
	long child;

	probe_aim(&goals[goal]);
	memset(&args, 0, sizeof args);
	args.flags = CLONE_SETTLS;
	args.exit_signal = SIGCHLD;
	args.tls = at;
	MUST_FAIL(syscall(SYS_clone3, &args, sizeof args));
	memset(&args, 0, sizeof args);
	args.exit_signal = SIGCHLD;
	args.stack = at;
	args.stack_size = 65536;
	child = syscall(SYS_clone3, &args, sizeof args);
	if (child == 0)
		_exit(0); /* with rsp in the kernel's half: any push kills it */
	if (child > 0) {
		waitpid((pid_t)child, &status, 0);
		note("child with a stack there: status %#x", status);
	}
	memset(&args, 0, sizeof args);
	args.flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
	args.exit_signal = SIGCHLD;
	args.parent_tid = args.child_tid = at;
	child = syscall(SYS_clone3, &args, sizeof args);
	if (child == 0)
		_exit(0);
	if (child > 0)
		waitpid((pid_t)child, &status, 0);
	child = clone(in_thread, (char *)probe_stack(), CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD, NULL, NULL, NULL, (void *)at);
	if (child > 0)
		waitpid((pid_t)child, &status, 0);
	syscall(SYS_set_tid_address, at);
	MUST_FAIL(syscall(SYS_set_robust_list, at, 8));
	syscall(SYS_set_robust_list, at, 24);
	MUST_FAIL(syscall(SYS_futex, at, 0, 0, NULL, NULL, 0));
	MUST_FAIL(syscall(SYS_futex, at, 5, 0, 0, at, 0x280000));
}

void frames_attempts(void)
{
	for (long stack = 0; stack < STACKS; stack++)
		for (long selector = 0; selector < SELECTORS; selector++)
			for (long goal = 0; goal < GOALS; goal++)
				if (selectors[selector] != 0x33 || goal != GOAL_OWN)
					try_it(forged_frame, (stack * SELECTORS + selector) * GOALS + goal,
					       "sigreturn with cs=%#x ss=%#x to %s", selectors[selector], stacks[stack],
					       goals[goal].name);
	for (long selector = 0; selector < SELECTORS - 1; selector++)
		for (long stack = 0; stack < STACKS; stack++)
			try_it(forged_frame32, stack * SELECTORS + selector, "32-bit sigreturn with cs=%#x ss=%#x",
			       selectors[selector], stacks[stack]);
	for (long goal = 0; goal < 2 * GOALS; goal++)
		try_it(forged_in_personality, goal, "sigreturn with cs=0x13 to %s after personality %d",
		       goals[goal % GOALS].name, goal >= GOALS ? 32 : 64);
	try_it(sixteen_bit_stack, 0, "sigreturn with a 16-bit stack segment");
	for (long goal = GOAL_APP; goal < GOALS; goal++) {
		try_it(kernel_handler, HANDLER * GOALS + goal, "signal handler in %s", goals[goal].name);
		try_it(kernel_handler, RESTORER * GOALS + goal, "signal restorer in %s", goals[goal].name);
		try_it(kernel_stack_frame, goal, "signal stack in %s", goals[goal].name);
		try_it(kernel_frame, goal, "signal frame in %s", goals[goal].name);
		try_it(restartable, goal, "restartable sequence aborting to %s", goals[goal].name);
		try_it(kernel_thread_pointers, goal, "thread pointers in %s", goals[goal].name);
	}
}
