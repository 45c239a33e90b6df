/* SPDX-License-Identifier: Apache-2.0 */
/* Ways through the processor itself: privileged instructions, jumps into the kernel's half, far transfers, descriptors. */
#include "attack.h"

#include <asm/ldt.h>
#include <cpuid.h>
#include <sys/io.h>

static const unsigned selectors[] = {0x08, 0x0b, 0x10, 0x13, 0x18, 0x1b, 0x40, 0x43};
#define SELECTORS (sizeof selectors / sizeof *selectors)

/*
 * QEMU before 9.1 makes the stack accesses of iret, far return and far call with the kernel's rights when it emulates: in ring 3,
 * with SMAP on, they then fault as if the kernel had made them, and any Linux reports an oops. The harness says
 * UKL_FAR_STACK=1 where the emulator is newer.
 */
static int far_stack_works(void)
{
	unsigned eax, ebx, ecx, edx;
	char name[13] = "";

	if (getenv("UKL_FAR_STACK"))
		return 1;
	__cpuid(1, eax, ebx, ecx, edx);
	if (!(ecx >> 31 & 1))
		return 1; /* no hypervisor */
	__cpuid(0x40000000, eax, ebx, ecx, edx);
	memcpy(name, &ebx, 4);
	memcpy(name + 4, &ecx, 4);
	memcpy(name + 8, &edx, 4);
	return strcmp(name, "TCGTCGTCGTCG") != 0;
}

static void privileged(long unused)
{
	(void)unused;
	probe_privileged();
}

/* iopl(3) is about ports alone; `cli` must not come with it. */
static void with_iopl(long unused)
{
	(void)unused;
	if (iopl(3) != 0)
		note("iopl: errno %d", errno);
	for (int i = 0; i < 2; i++) {
		unsigned long flags;

		__asm__ volatile("pushf\n\tpop %0" : "=r"(flags));
		if (flags & 0x3000)
			escaped("EFLAGS.IOPL is %lu", flags >> 12 & 3);
		__asm__ volatile("pushf\n\torq $0x3000, (%%rsp)\n\tpopf" : : : "memory", "cc");
	}
	__asm__ volatile("cli");
	escaped("cli works");
}

enum { JUMP, CALL, RETURN, CALL_CPL, JUMPS };

static void near_transfer(long argument)
{
	const struct goal *goal = &goals[argument / JUMPS];
	unsigned where = 99;

	probe_aim(goal);
	switch (argument % JUMPS) {
	case JUMP:
		__asm__ volatile("mov %1, %%rsp\n\tjmp *%0" : : "r"(goal->at), "r"(probe_stack()) : "memory");
		break;
	case CALL:
		/* Of itself the call pushes its return address: coming back is an escape too. */
		((void (*)(void))goal->at)();
		escaped("a call of %#lx came back", goal->at);
	case RETURN:
		__asm__ volatile("mov %1, %%rsp\n\tpush %0\n\tret" : : "r"(goal->at), "r"(probe_stack()) : "memory");
		break;
	default:
		probe_aim(&(struct goal){"", here.app_cpl, 1});
		((void (*)(unsigned *))here.app_cpl)(&where);
		escaped("application text ran with CS %#x", where);
	}
	__builtin_unreachable();
}

static void far_pointer(long argument)
{
	const struct goal *goal = &goals[argument % GOALS];
	struct {
		uint64_t offset;
		uint16_t selector;
	} __attribute__((packed)) target = {goal->at, (uint16_t)selectors[argument / GOALS / 2 % SELECTORS]};

	probe_aim(goal);
	if (argument / GOALS % 2)
		__asm__ volatile("mov %1, %%rsp\n\trex.w ljmp *(%0)" : : "r"(&target), "r"(probe_stack()) : "memory");
	else
		__asm__ volatile("mov %1, %%rsp\n\trex.w lcall *(%0)" : : "r"(&target), "r"(probe_stack()) : "memory");
	escaped("a far transfer to %#x went on", target.selector);
}

static void far_return(long argument)
{
	const struct goal *goal = &goals[argument % GOALS];
	uint64_t selector = selectors[argument / GOALS];

	probe_aim(goal);
	__asm__ volatile("mov %2, %%rsp\n\tpush %0\n\tpush %1\n\trex.w lret"
			 :
			 : "r"(selector), "r"((uint64_t)goal->at), "r"(probe_stack())
			 : "memory");
	__builtin_unreachable();
}

static void interrupt_return(long argument)
{
	static const unsigned stacks[] = {0x2b, 0x18, 0x1b, 0};
	const struct goal *goal = &goals[argument % GOALS];
	uint64_t selector = selectors[argument / GOALS % SELECTORS], stack = stacks[argument / GOALS / SELECTORS];
	uint64_t frame[5] = {goal->at, selector, 0x202 | EFLAGS_AC, probe_stack(), stack};

	probe_aim(goal);
	__asm__ volatile("mov %0, %%rsp\n\tiretq" : : "r"(frame), "m"(frame) : "memory");
	__builtin_unreachable();
}

static void system_return(long goal)
{
	probe_aim(&goals[goal]);
	__asm__ volatile("mov %1, %%rsp\n\tmov $0x40202, %%r11d\n\tsysretq"
			 :
			 : "c"(goals[goal].at), "r"(probe_stack())
			 : "r11", "memory");
	__builtin_unreachable();
}

/* Every software interrupt; the vectors of the kernel's own exceptions and interrupts must not be reachable. */
static void one_interrupt(void *code)
{
	((void (*)(void))code)();
}

static void software_interrupts(long unused)
{
	unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int came_back = 0;

	(void)unused;
	if (code == MAP_FAILED) {
		note("no page for code");
		_exit(2);
	}
	for (unsigned vector = 0; vector < 256; vector++) {
		/* xor eax,eax (read or restart_syscall, as int 0x80 has it); int n; ret */
		const unsigned char bytes[] = {0x31, 0xc0, 0xcd, (unsigned char)vector, 0xc3};

		memcpy(code, bytes, sizeof bytes);
		if (probe_guarded(one_interrupt, code) == 0)
			came_back++;
		if (probe_cpl() != 3)
			escaped("CPL %u after int %#x", probe_cpl(), vector);
	}
	note("%d interrupts came back", came_back);
	if (came_back > 1)
		escaped("%d software interrupts came back; only 0x80 may", came_back);
	probe_privileged();
}

static void far_call(void *pointer)
{
	__asm__ volatile("rex.w lcall *(%0)" : : "r"(pointer) : "memory");
}

static void far_jump32(void *pointer)
{
	__asm__ volatile("ljmp *(%0)" : : "r"(pointer) : "memory");
}

/* Descriptors as odd as the interface takes them, and far calls through whatever became of them. */
static void descriptor_table(long far_stack)
{
	unsigned accepted = 0;

	for (unsigned bits = 0; bits < 256; bits++) {
		struct user_desc entry = {
			.entry_number = 3,
			.base_addr = bits & 1 ? 0xc0000000u : 0,
			.limit = 0xfffff,
			.seg_32bit = bits >> 1 & 1,
			.contents = bits >> 2 & 3,
			.read_exec_only = bits >> 4 & 1,
			.limit_in_pages = bits >> 5 & 1,
			.seg_not_present = bits >> 6 & 1,
			.useable = 1,
			.lm = bits >> 7 & 1,
		};

		if (syscall(SYS_modify_ldt, 0x11, &entry, sizeof entry) != 0)
			continue;
		accepted++;
		for (unsigned rpl = 0; rpl < 4; rpl++) {
			struct {
				uint64_t offset;
				uint16_t selector;
			} __attribute__((packed)) wide = {here.app_return, (uint16_t)(3 << 3 | 4 | rpl)};
			struct {
				uint32_t offset;
				uint16_t selector;
			} __attribute__((packed)) narrow = {0, wide.selector};

			if (far_stack)
				(void)probe_guarded(far_call, &wide);
			(void)probe_guarded(far_jump32, &narrow);
			if (probe_cpl() != 3)
				escaped("CPL %u by descriptor %#x", probe_cpl(), bits);
		}
	}
	note("%u descriptors accepted", accepted);
	probe_privileged();
}

/* The kernel's own descriptors through the interface for thread-local ones. */
static void kernel_descriptors(long unused)
{
	(void)unused;
	for (unsigned number = 0; number < 32; number++) {
		for (unsigned contents = 0; contents < 4; contents++) {
			struct user_desc entry = {.entry_number = number, .limit = 0xfffff, .seg_32bit = 1, .contents = contents,
						  .limit_in_pages = 1, .useable = 1, .lm = contents == 2};
			long got = syscall(SYS_set_thread_area, &entry);

			/* 12 to 14 are the ones for programs. */
			if (got == 0 && (number < 12 || number > 14))
				escaped("descriptor %u of the kernel was set", number);
			if (got == 0 && contents >= 2)
				escaped("a code segment was accepted as thread-local");
		}
	}
	probe_privileged();
}

void cpu_attempts(void)
{
	static const char *const transfer[] = {"jump to", "call of", "return to"};
	static const unsigned stacks[] = {0x2b, 0x18, 0x1b, 0};
	int far_stack = far_stack_works();

	if (!far_stack)
		puts("skipped: iret, far return and call through a descriptor; this emulator mistakes them for the kernel's");
	try_it(privileged, 0, "privileged instructions");
	try_as_nobody(privileged, 0, "privileged instructions, unprivileged user");
	try_it(with_iopl, 0, "cli after iopl");
	for (long goal = GOAL_APP; goal < GOALS; goal++) {
		for (long how = JUMP; how <= RETURN; how++)
			try_it(near_transfer, goal * JUMPS + how, "%s %s", transfer[how], goals[goal].name);
		try_it(system_return, goal, "sysret to %s", goals[goal].name);
	}
	try_it(near_transfer, GOAL_APP * JUMPS + CALL_CPL, "call of an application function that tells its level");
	for (size_t i = 0; i < SELECTORS; i++)
		for (long goal = 0; goal < GOALS; goal++) {
			const char *name = goals[goal].name;

			try_it(far_pointer, ((long)i * 2 + 1) * GOALS + goal, "far jump to %#x, %s", selectors[i], name);
			try_it(far_pointer, (long)i * 2 * GOALS + goal, "far call of %#x, %s", selectors[i], name);
			if (!far_stack)
				continue;
			try_it(far_return, (long)i * GOALS + goal, "far return to %#x, %s", selectors[i], name);
			for (long stack = 0; stack < 4; stack++)
				try_it(interrupt_return, (stack * (long)SELECTORS + (long)i) * GOALS + goal,
				       "iret to cs=%#x ss=%#x, %s", selectors[i], stacks[stack], name);
		}
	try_it(software_interrupts, 0, "every software interrupt");
	try_it(descriptor_table, far_stack, "far transfers through modify_ldt descriptors");
	try_it(kernel_descriptors, 0, "kernel descriptors by set_thread_area");
}
