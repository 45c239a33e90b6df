/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Odd states of the processor at the moment the kernel is entered: a stack pointer in the kernel's half, a forged GS base,
 * the trap flag, watchpoints, `syscall` at the very end of the user half. The entry code decides from such things who
 * was interrupted; an ordinary program must never be taken for the application or for the kernel.
 */
#include "attack.h"

#include <asm/prctl.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/user.h>

#define PAGE 4096ul
#define HWCAP2_FSGSBASE_BIT 2ul

static const uintptr_t wild[] = {0xffffffff81000000UL, 0xffffffffc0001000UL, 0xffff888000001000UL, 0xfffffe0000001000UL,
				 0xffffc90000004000UL, 0xfffffffffffffff8UL, 0x8000000000000000UL, 0x00007ffffffffff8UL,
				 0x0000000000000008UL};
#define WILD (sizeof wild / sizeof *wild)

static uintptr_t wild_or_app(size_t i)
{
	return i < WILD ? wild[i] : here.app_return;
}

static volatile sig_atomic_t ticks;

static void on_tick(int number)
{
	(void)number;
	if (probe_cpl() != 3)
		escaped("a signal handler runs at CPL %u", probe_cpl());
	ticks++;
}

static void start_ticking(void)
{
	struct itimerval every = {{0, 500}, {0, 500}};
	struct sigaction action;

	memset(&action, 0, sizeof action);
	action.sa_handler = on_tick;
	action.sa_flags = SA_ONSTACK | SA_RESTART;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
}

struct entry {
	uintptr_t stack;
	int how;
};

enum { SPIN, SYSTEM_CALL, PAGE_FAULT, BREAKPOINT, UNDEFINED, COMPAT_CALL, ENTRIES };
static const char *const entry_name[] = {"timer interrupts", "syscall", "page fault", "int3", "ud2", "int 0x80"};

/* One way into the kernel with rsp as given; rsp comes back from a register. */
static void enter_with_stack(void *argument)
{
	const struct entry *entry = argument;
	long count = 30000000;

	switch (entry->how) {
	case SPIN:
		/* Until signals have been delivered, or a time long enough for several interrupts. */
		__asm__ volatile("mov %%rsp, %%r12\n\tmov %1, %%rsp\n"
				 "1:	cmpl $5, %2\n\tjge 2f\n\tdec %0\n\tjnz 1b\n"
				 "2:	mov %%r12, %%rsp"
				 : "+r"(count)
				 : "r"(entry->stack), "m"(ticks)
				 : "r12", "cc", "memory");
		break;
	case SYSTEM_CALL:
		__asm__ volatile("mov %%rsp, %%r12\n\tmov %1, %%rsp\n\tmov %2, %%eax\n\tsyscall\n\tmov %%r12, %%rsp"
				 : "=&a"(count)
				 : "r"(entry->stack), "i"(SYS_getppid)
				 : "rcx", "r11", "r12", "memory");
		break;
	case PAGE_FAULT:
		__asm__ volatile("mov %0, %%rsp\n\tmovb $1, 0" : : "r"(entry->stack) : "memory");
		__builtin_unreachable();
	case BREAKPOINT:
		__asm__ volatile("mov %0, %%rsp\n\tint3" : : "r"(entry->stack) : "memory");
		__builtin_unreachable();
	case UNDEFINED:
		__asm__ volatile("mov %0, %%rsp\n\tud2" : : "r"(entry->stack) : "memory");
		__builtin_unreachable();
	default:
		__asm__ volatile("mov %%rsp, %%r12\n\tmov %1, %%rsp\n\tmov $20, %%eax\n\tint $0x80\n\tmov %%r12, %%rsp"
				 : "=&a"(count)
				 : "r"(entry->stack)
				 : "rcx", "r8", "r9", "r10", "r11", "r12", "memory");
		break;
	}
}

static void odd_stack(long how)
{
	if (how == SPIN)
		start_ticking();
	for (size_t i = 0; i <= WILD; i++) {
		struct entry entry = {wild_or_app(i), (int)how};

		ticks = 0;
		(void)probe_guarded(enter_with_stack, &entry);
		if (probe_cpl() != 3)
			escaped("CPL %u with rsp %#lx", probe_cpl(), entry.stack);
	}
	probe_privileged();
}

static void write_gs(void *value)
{
	__asm__ volatile("wrgsbase %0" : : "r"(value));
}

/* A forged GS base must never become the kernel's per-CPU area, also not in a nested entry. */
static void odd_gs(long how)
{
	start_ticking();
	if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT))
		note("no wrgsbase");
	for (size_t i = 0; i <= WILD; i++) {
		struct entry entry = {probe_stack(), (int)how};

		if (syscall(SYS_arch_prctl, ARCH_SET_GS, wild_or_app(i)) == 0 && wild_or_app(i) >> 47)
			escaped("ARCH_SET_GS took %#lx", wild_or_app(i));
		if (syscall(SYS_arch_prctl, ARCH_SET_FS, wild_or_app(i) | 1ul << 63) == 0)
			escaped("ARCH_SET_FS took %#lx", wild_or_app(i));
		(void)probe_guarded(write_gs, (void *)wild_or_app(i));
		ticks = 0;
		(void)probe_guarded(enter_with_stack, &entry);
		if (probe_cpl() != 3)
			escaped("CPL %u with GS base %#lx", probe_cpl(), wild_or_app(i));
	}
	probe_privileged();
}

/* The trap flag across the ways in: #DB may hit the first instruction of the kernel. */
static void step_into(void *argument)
{
	long how = (long)argument, result;

	switch (how) {
	case 0:
		__asm__ volatile("pushf\n\torq $0x100, (%%rsp)\n\tpopf\n\tsyscall"
				 : "=a"(result)
				 : "a"(SYS_getppid)
				 : "rcx", "r11", "memory", "cc");
		break;
	case 1:
		__asm__ volatile("pushf\n\torq $0x100, (%%rsp)\n\tpopf\n\tint $0x80"
				 : "=a"(result)
				 : "a"(20)
				 : "r8", "r9", "r10", "r11", "memory", "cc");
		break;
	case 2:
		__asm__ volatile("pushf\n\torq $0x100, (%%rsp)\n\tpopf\n\tmov %%rsp, %%rbp\n\tsysenter" : : "a"(20) : "memory");
		break;
	default:
		__asm__ volatile("pushf\n\torq $0x100, (%%rsp)\n\tpopf\n\tmovb $1, 0" : : : "memory", "cc");
		break;
	}
}

static void single_step(long how)
{
	for (int i = 0; i < 20; i++) {
		(void)probe_guarded(step_into, (void *)how);
		__asm__ volatile("pushf\n\tandq $~0x100, (%%rsp)\n\tpopf" : : : "memory", "cc");
		if (probe_cpl() != 3)
			escaped("CPL %u", probe_cpl());
	}
	probe_privileged();
}

/*
 * A watchpoint on what `mov ss` reads is held back over the next instruction; where that one enters the kernel, #DB arrives on
 * the kernel's first instruction. The debug registers are set by a tracer.
 */
static uint16_t stack_selector = 0x2b;

static void held_back(void *argument)
{
	long how = (long)argument, result;

	if (how == 0)
		__asm__ volatile("mov %1, %%ss\n\tsyscall" : "=a"(result) : "m"(stack_selector), "a"(SYS_getppid) : "rcx", "r11", "memory");
	else if (how == 1)
		__asm__ volatile("mov %0, %%ss\n\tint3" : : "m"(stack_selector) : "memory");
	else
		__asm__ volatile("mov %1, %%ss\n\tint $0x80"
				 : "=a"(result)
				 : "m"(stack_selector), "a"(20)
				 : "r8", "r9", "r10", "r11", "memory");
}

static void watched_child(long how)
{
	if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0)
		_exit(2);
	raise(SIGSTOP);
	for (int i = 0; i < 20; i++) {
		(void)probe_guarded(held_back, (void *)how);
		if (probe_cpl() != 3)
			escaped("CPL %u", probe_cpl());
	}
	probe_privileged();
	_exit(0);
}

static void watchpoint(long how)
{
	pid_t child = fork();
	int status;

	if (child == 0)
		watched_child(how);
	while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
		int number = WSTOPSIG(status);

		if (number == SIGSTOP) {
			number = 0;
			/* Two bytes, read or write, local. */
			if (ptrace(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[0]), &stack_selector) != 0 ||
			    ptrace(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[7]), 0x00070001ul) != 0)
				note("no debug registers: errno %d", errno);
		}
		ptrace(PTRACE_CONT, child, 0, number);
	}
}

/*
 * Watchpoints may not be set on the kernel's addresses: they would go off in its entry code. On the application's code
 * whoever may trace it can set them.
 */
static void kernel_watchpoint(long unused)
{
	pid_t child;
	int status;

	(void)unused;
	drop_rawio();
	child = fork();
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		_exit(0);
	}
	waitpid(child, &status, 0);
	for (size_t i = 0; i < WILD + 1; i++)
		if (wild_or_app(i) >> 63)
			MUST_FAIL(ptrace(PTRACE_POKEUSER, child, offsetof(struct user, u_debugreg[0]), wild_or_app(i)));
	kill(child, SIGKILL);
}

/* `syscall` as the last instruction of the last page: the return address is the first one beyond the user half. */
static void last_page(long unused)
{
	unsigned char *page = MAP_FAILED;
	uintptr_t end = 0;

	(void)unused;
	/* With five-level page tables the user half may end at 2^56. */
	for (int bits = 56; bits >= 47 && page == MAP_FAILED; bits -= 9) {
		end = 1ul << bits;
		MUST_FAIL((long)mmap((void *)(end - PAGE), PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
		end -= PAGE;
		page = mmap((void *)(end - PAGE), PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	}
	if (page == MAP_FAILED) {
		note("the last page is taken: errno %d", errno);
		return;
	}
	memset(page, 0x90, PAGE);
	page[PAGE - 2] = 0x0f;
	page[PAGE - 1] = 0x05;
	probe_aim(&(struct goal){"", end, 0});
	__asm__ volatile("mov %0, %%rsp\n\tjmp *%1" : : "r"(probe_stack()), "r"(page + PAGE - 2), "a"(SYS_getppid) : "memory");
	__builtin_unreachable();
}

/* What `syscall` leaves in rcx cannot be forged, but what is there before it can: nothing may be read from it. */
static void forged_registers(long unused)
{
	(void)unused;
	for (size_t i = 0; i <= WILD; i++) {
		long result;
		uintptr_t forged = wild_or_app(i);

		__asm__ volatile("mov %2, %%rcx\n\tmov %2, %%r11\n\tsyscall"
				 : "=a"(result)
				 : "a"(SYS_getppid), "r"(forged)
				 : "rcx", "r11", "memory");
		if (result != getppid() || probe_cpl() != 3)
			escaped("with rcx %#lx", forged);
	}
	probe_privileged();
}

static void by_sysenter(void *rbp)
{
	__asm__ volatile("mov %0, %%rbp\n\tmov %0, %%rsp\n\tsysenter" : : "r"(rbp), "a"(20) : "memory");
	__builtin_unreachable();
}

static void system_enter(long unused)
{
	(void)unused;
	for (size_t i = 0; i <= WILD; i++) {
		(void)probe_guarded(by_sysenter, (void *)wild_or_app(i));
		if (probe_cpl() != 3)
			escaped("CPL %u with rsp %#lx", probe_cpl(), wild_or_app(i));
	}
	probe_privileged();
}

/* Numbers and options nobody knows: no back door for ordinary programs among them. */
static void unknown_calls(long unused)
{
	(void)unused;
	for (long number = 600; number < 2000; number++)
		MUST_FAIL(syscall(number, here.app_return, here.app_return, 0, 0, 0, 0));
	for (long number = -1; number > -50; number--)
		if (syscall(number, 1, 1, 1, 1, 1, 1) >= 0)
			escaped("system call %ld exists", number);
	probe_privileged();
}

static void unknown_options(long unused)
{
	(void)unused;
	for (unsigned code = 0x1000; code < 0x6000; code++) {
		/* Shadow stacks (0x5001 to 0x5005) would end this process at its next return. */
		if (code < 0x5001 || code > 0x5005)
			syscall(SYS_arch_prctl, code, here.app_return);
		if (probe_cpl() != 3)
			escaped("CPL %u after arch_prctl(%#x)", probe_cpl(), code);
	}
	for (int option = 0; option < 2000; option++) {
		/* Not those that take signals or system calls away. */
		if (option == PR_SET_SECCOMP || option == PR_SET_SYSCALL_USER_DISPATCH || option == PR_SET_PDEATHSIG)
			continue;
		prctl(option, here.app_return, here.app_return, 0, 0);
		if (probe_cpl() != 3)
			escaped("CPL %u after prctl(%d)", probe_cpl(), option);
	}
	prctl(PR_SET_TSC, PR_TSC_ENABLE);
	probe_privileged();
}

void odd_attempts(void)
{
	for (long how = 0; how < ENTRIES; how++) {
		try_it(odd_stack, how, "rsp anywhere at %s", entry_name[how]);
		try_it(odd_gs, how, "GS base anywhere at %s", entry_name[how]);
	}
	try_it(single_step, 0, "single step into syscall");
	try_it(single_step, 1, "single step into int 0x80");
	try_it(single_step, 2, "single step into sysenter");
	try_it(single_step, 3, "single step into a page fault");
	try_it(watchpoint, 0, "watchpoint held back into syscall");
	try_it(watchpoint, 1, "watchpoint held back into int3");
	try_it(watchpoint, 2, "watchpoint held back into int 0x80");
	try_it(kernel_watchpoint, 0, "watchpoints on kernel addresses");
	try_it(last_page, 0, "syscall at the end of the user half");
	try_it(forged_registers, 0, "syscall with forged rcx and r11");
	try_it(system_enter, 0, "sysenter with forged stacks");
	try_it(unknown_calls, 0, "system calls nobody knows");
	try_as_nobody(unknown_options, 0, "every option of prctl and arch_prctl");
}
