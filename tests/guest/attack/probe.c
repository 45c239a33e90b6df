/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Detection. An attempt that reaches CPL 0 shows in one of these ways, whatever SMEP and SMAP do:
 *
 *   - probe_entry or probe_landing runs with CPL 0;
 *   - probe_landing is reached at all: only a kernel function that ran returns there;
 *   - a page fault on fetching our own code, which is executable: SMEP stopped CPL 0;
 *   - a page fault at the goal in the kernel's half that is not an instruction fetch, or a fault elsewhere in the
 *     kernel's half: instructions ran there.
 *
 * Refused shows as a fetch fault at the goal (CPL 3), a general protection fault (iret to a bad selector), or no fault.
 */
#include "attack.h"

#include <setjmp.h>

#define STACK_WORDS 8192
#define FAULT_FETCH 0x10
#define TRAP_PAGE_FAULT 14

static struct goal aim;
static uintptr_t slots[STACK_WORDS] __attribute__((aligned(64)));
static char alternate[65536];
static char arrival_stack[65536] __attribute__((used, aligned(64)));
static sigjmp_buf guard;
static volatile sig_atomic_t guarded;

void probe_arrived(unsigned cpl, int landed) __attribute__((noreturn, used));

__asm__(".text\n"
	".globl probe_entry\n"
	".type probe_entry, @function\n"
	"probe_entry:\n"
	"	xor %esi, %esi\n"
	"	jmp 1f\n"
	".globl probe_landing\n"
	".type probe_landing, @function\n"
	"probe_landing:\n"
	"	mov $1, %esi\n"
	"1:	lea arrival_stack+65536(%rip), %rsp\n"
	"	cld\n"
	"	mov %cs, %edi\n"
	"	and $3, %edi\n"
	"	cmp $3, %edi\n"
	"	jne 2f\n"
	/* At CPL 0 the AC flag lets SMAP pass; at CPL 3 it makes C code fault on alignment. */
	"	pushfq\n"
	"	andl $0xfffbffff, (%rsp)\n"
	"	popfq\n"
	"2:	call probe_arrived\n");

/* A return after a jump to own code at CPL 3 is how such an attempt ends when the forgery was simply ignored. */
void probe_arrived(unsigned cpl, int landed)
{
	if (cpl != 3)
		escaped("own code runs at CPL %u", cpl);
	if (landed)
		escaped("came back from the kernel's half");
	note("own code runs at CPL 3");
	_exit(0);
}

unsigned probe_cpl(void)
{
	unsigned cs;

	__asm__ volatile("mov %%cs, %0" : "=r"(cs));
	return cs & 3;
}

void probe_aim(const struct goal *goal)
{
	aim = *goal;
	for (size_t i = 0; i < STACK_WORDS; i++)
		slots[i] = (uintptr_t)&probe_landing;
}

uintptr_t probe_stack(void)
{
	return (uintptr_t)&slots[STACK_WORDS / 2];
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	uintptr_t rip = (uintptr_t)regs[REG_RIP];
	long trap = regs[REG_TRAPNO], error = regs[REG_ERR];
	unsigned cs = (unsigned)(regs[REG_CSGSFS] & 0xffff);

	/* The forged AC flag is still set, and libc reads words at odd addresses. (Not a leaf: no red zone is in use.) */
	__asm__ volatile("pushfq\n\tandl $0xfffbffff, (%%rsp)\n\tpopfq" : : : "memory", "cc");
	if (probe_cpl() != 3)
		escaped("a signal handler runs at CPL %u", probe_cpl());
	if ((cs & 3) != 3)
		escaped("interrupted with CS %#x", cs);
	if (guarded)
		siglongjmp(guard, number);
	if (rip == (uintptr_t)&probe_landing && aim.kernel)
		escaped("came back from the kernel's half, stopped at our page");
	if (number == SIGSEGV && trap == TRAP_PAGE_FAULT && info->si_code > 0 && info->si_code != SI_KERNEL) {
		if (rip == (uintptr_t)&probe_entry)
			escaped("CPL 0 was reached; SMEP stopped it");
		if (aim.kernel && rip == aim.at && !(error & FAULT_FETCH))
			escaped("kernel code ran and faulted on data, error %#lx", error);
		if (aim.kernel && rip != aim.at && rip >= 0xffff800000000000UL)
			escaped("kernel code ran up to %#lx", rip);
	}
	note("signal %d, trap %ld, error %#lx, rip %s", number, trap, error,
	     rip == aim.at ? "at the goal" : (long)rip < 0 ? "in the kernel's half" : "elsewhere");
	_exit(0);
}

void probe_setup(void)
{
	static const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
	stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
	struct sigaction action;

	sigaltstack(&stack, NULL);
	memset(&action, 0, sizeof action);
	action.sa_sigaction = on_fault;
	action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		sigaction(numbers[i], &action, NULL);
}

int probe_guarded(void (*run)(void *), void *argument)
{
	int number = sigsetjmp(guard, 1);

	if (number == 0) {
		guarded = 1;
		run(argument);
	}
	guarded = 0;
	return number;
}

/* Reads only, or effects that undo themselves: should one work, the machine goes on and the line says so. */
#define PRIVILEGED(name, code)                                                                                             \
	static void privileged_##name(void *unused)                                                                        \
	{                                                                                                                  \
		(void)unused;                                                                                              \
		__asm__ volatile(code : : : "rax", "rcx", "rdx", "memory", "cc");                                          \
	}

PRIVILEGED(cr0, "mov %%cr0, %%rax")
PRIVILEGED(cr2, "mov %%cr2, %%rax")
PRIVILEGED(cr3, "mov %%cr3, %%rax")
PRIVILEGED(cr4, "mov %%cr4, %%rax")
PRIVILEGED(dr7, "mov %%dr7, %%rax")
PRIVILEGED(rdmsr, "mov $0x10, %%ecx\n\trdmsr")
PRIVILEGED(clts, "clts")
PRIVILEGED(cli, "cli\n\tsti")
PRIVILEGED(invlpg, "invlpg (%%rsp)")
PRIVILEGED(port, "in $0x80, %%al")
PRIVILEGED(swapgs, "swapgs\n\tswapgs")
PRIVILEGED(wbinvd, "wbinvd")

void probe_privileged(void)
{
	static const struct {
		const char *name;
		void (*run)(void *);
	} all[] = {
		{"mov cr0", privileged_cr0}, {"mov cr2", privileged_cr2}, {"mov cr3", privileged_cr3},
		{"mov cr4", privileged_cr4}, {"mov dr7", privileged_dr7}, {"rdmsr", privileged_rdmsr},
		{"clts", privileged_clts},   {"cli", privileged_cli},     {"invlpg", privileged_invlpg},
		{"in", privileged_port},     {"swapgs", privileged_swapgs}, {"wbinvd", privileged_wbinvd},
	};

	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (probe_guarded(all[i].run, NULL) == 0)
			escaped("%s works", all[i].name);
	if (probe_cpl() != 3)
		escaped("runs at CPL %u", probe_cpl());
}
