/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults as signals: every bad access of the program is SIGSEGV (or its proper signal) with the right address, is
 * recovered from, and never harms the kernel. Bad addresses in system calls are EFAULT.
 *
 * si_code is not checked where the two modes rightly differ: own text lies in the kernel's half when UKL.
 */
#include "uklcheck.h"

#include <setjmp.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>

#define PAGE 4096ul
#define REPEATS 2000

static sigjmp_buf recover;
static volatile struct {
	sig_atomic_t count;
	int signal, code;
	uintptr_t address, ip;
	unsigned cs;
} fault;

static char alternate[256 * 1024];
static const char constant[] = "read-only data";
static uintptr_t volatile nowhere;

static void on_fault(int number, siginfo_t *info, void *context)
{
	const ucontext_t *user = context;
	uintptr_t here = (uintptr_t)__builtin_frame_address(0);

	ukl_check_mode();
	if (here < (uintptr_t)alternate || here >= (uintptr_t)alternate + sizeof alternate)
		ukl_fail("the handler does not run on the alternate stack");
	fault.count++;
	fault.signal = number;
	fault.code = info->si_code;
	fault.address = (uintptr_t)info->si_addr;
	fault.ip = (uintptr_t)user->uc_mcontext.gregs[REG_RIP];
	fault.cs = (unsigned)(user->uc_mcontext.gregs[REG_CSGSFS] & 0xffff);
	siglongjmp(recover, 1);
}

__attribute__((noinline)) static int harmless(void)
{
	__asm__ volatile("" ::: "memory");
	return 1;
}

static void load(uintptr_t at)
{
	(void)*(volatile char *)at;
}

static void store(uintptr_t at)
{
	*(volatile char *)at = 1;
}

static void jump(uintptr_t at)
{
	((void (*)(void))at)();
}

/* The access must raise this signal; the caller looks at ``fault`` for more. */
static void expect(int number, void (*access)(uintptr_t), uintptr_t at, const char *what)
{
	sig_atomic_t before = fault.count;

	if (sigsetjmp(recover, 1) == 0) {
		access(at);
		ukl_fail("%s went through", what);
	}
	CHECK_EQ(fault.count, before + 1);
	if (fault.signal != number)
		ukl_fail("%s: signal %d, not %d", what, fault.signal, number);
	/* Signal frames show the segment of ordinary programs, or debuggers and unwinders are lost. */
	CHECK_EQ(fault.cs, 0x33);
}

static void expect_at(void (*access)(uintptr_t), uintptr_t at, int code, const char *what)
{
	expect(SIGSEGV, access, at, what);
	if (fault.address != at)
		ukl_fail("%s: si_addr %#lx, not %#lx", what, fault.address, at);
	if (code && fault.code != code)
		ukl_fail("%s: si_code %d, not %d", what, fault.code, code);
	if (access == jump)
		CHECK(fault.ip == at);
	printf("%s: SIGSEGV\n", what);
}

static void null_pages(void)
{
	expect_at(load, nowhere, SEGV_MAPERR, "read of NULL");
	expect_at(store, nowhere, SEGV_MAPERR, "write of NULL");
	expect_at(jump, nowhere, SEGV_MAPERR, "call of NULL");
	expect_at(load, nowhere + 0x10, SEGV_MAPERR, "read of NULL + 16");
	expect_at(store, nowhere + 0xfff, SEGV_MAPERR, "write of NULL + 4095");
	expect_at(jump, nowhere + 0x123, SEGV_MAPERR, "call of NULL + 0x123");
	for (int i = 0; i < REPEATS; i++) {
		void (*const access)(uintptr_t) = i % 3 == 0 ? load : i % 3 == 1 ? store : jump;

		expect(SIGSEGV, access, nowhere + (unsigned)i, "one of many");
		CHECK_EQ(fault.address, i);
	}
	printf("%d faults more: all recovered\n", REPEATS);
}

static void protections(void)
{
	char *map = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t base = (uintptr_t)map;

	CHECK(map != MAP_FAILED);
	memset(map, 0xc3, 4 * PAGE); /* ret: were it executed, the call would come back */
	SYS(mprotect(map + PAGE, PAGE, PROT_READ));
	SYS(mprotect(map + 2 * PAGE, PAGE, PROT_NONE));
	SYS(munmap(map + 3 * PAGE, PAGE));
	expect_at(jump, base, SEGV_ACCERR, "call of a data page");
	expect_at(store, base + PAGE + 5, SEGV_ACCERR, "write of a read-only page");
	expect_at(load, base + 2 * PAGE + 5, SEGV_ACCERR, "read of a PROT_NONE page");
	expect_at(store, base + 2 * PAGE + 5, SEGV_ACCERR, "write of a PROT_NONE page");
	expect_at(load, base + 3 * PAGE, SEGV_MAPERR, "read of an unmapped page");
	expect_at(jump, base + 3 * PAGE, SEGV_MAPERR, "call of an unmapped page");
	expect_at(store, (uintptr_t)constant, SEGV_ACCERR, "write of own .rodata");
	expect_at(store, (uintptr_t)&harmless, 0, "write of own .text");
	CHECK_EQ(harmless(), 1);
	CHECK_STR(constant, "read-only data");
	expect_at(jump, (uintptr_t)&fault, SEGV_ACCERR, "call of own .data");
	expect_at(jump, (uintptr_t)__builtin_frame_address(0), SEGV_ACCERR, "call of own stack");
	SYS(munmap(map, 3 * PAGE));
}

/* A load that crosses into a bad page reports the byte in the bad page. */
static void crossing(void)
{
	char *map = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(map != MAP_FAILED);
	SYS(mprotect(map + PAGE, PAGE, PROT_NONE));
	if (sigsetjmp(recover, 1) == 0) {
		(void)*(volatile uint64_t *)(void *)(map + PAGE - 4);
		ukl_fail("a load across the border went through");
	}
	CHECK(fault.address == (uintptr_t)map + PAGE);
	if (sigsetjmp(recover, 1) == 0) {
		char *at = map;
		size_t left = 2 * PAGE;

		__asm__ volatile("rep stosb" : "+D"(at), "+c"(left) : "a"(1) : "memory");
		ukl_fail("rep stosb into the bad page went through");
	}
	CHECK(fault.address == (uintptr_t)map + PAGE);
	for (size_t i = 0; i < PAGE; i++)
		CHECK_EQ(map[i], 1);
	SYS(munmap(map, 2 * PAGE));
	puts("across a page border: ok");
}

/* Wild jumps: addresses that are no place of anyone's code. */
static void wild_jumps(void)
{
	expect(SIGSEGV, jump, 0x8000000000000000UL, "a non-canonical address");
	expect(SIGSEGV, jump, 0x00007fffffffffffUL, "the last byte of the user half");
	expect(SIGSEGV, jump, 0x0000800000000000UL, "the first byte above it");
	expect(SIGSEGV, jump, 0xffff800000000000UL, "the hole below the kernel's memory map");
	expect(SIGSEGV, load, 0x8000000000000000UL, "a load of a non-canonical address");
	expect(SIGSEGV, store, 0x4141414141414141UL, "a store to a non-canonical address");
	expect(SIGSEGV, load, 0xffff800000000000UL, "a load from the hole");
	puts("wild jumps and accesses: SIGSEGV, all recovered");
}

static void divide(uintptr_t by)
{
	unsigned quotient = 1, remainder = 0;

	__asm__ volatile("div %2" : "+a"(quotient), "+d"(remainder) : "r"((unsigned)by) : "cc");
}

static void undefined(uintptr_t at)
{
	(void)at;
	__asm__ volatile("ud2");
}

static void breakpoint(uintptr_t at)
{
	(void)at;
	__asm__ volatile("int3");
}

static void misaligned(uintptr_t at)
{
	__asm__ volatile("movaps (%0), %%xmm0" : : "r"(at + 1) : "xmm0", "memory");
}

static void other_traps(void)
{
	static char room[64] __attribute__((aligned(16)));

	expect(SIGFPE, divide, 0, "division by zero");
	CHECK_EQ(fault.code, FPE_INTDIV);
	CHECK(fault.address == fault.ip);
	expect(SIGILL, undefined, 0, "ud2");
	CHECK_EQ(fault.code, ILL_ILLOPN);
	CHECK(fault.address == fault.ip);
	expect(SIGTRAP, breakpoint, 0, "int3");
	expect(SIGSEGV, misaligned, (uintptr_t)room, "misaligned movaps");
	puts("SIGFPE, SIGILL, SIGTRAP, general protection: ok");
}

static void single_step(void)
{
	/* The trap flag set for some instructions: one SIGTRAP after the first, where it is taken away again. */
	sig_atomic_t before = fault.count;

	if (sigsetjmp(recover, 1) == 0) {
		__asm__ volatile("pushfq\n\t"
				 "orq $0x100, (%%rsp)\n\t"
				 "popfq\n\t"
				 "nop\n\t"
				 "nop"
				 :
				 :
				 : "memory", "cc");
		ukl_fail("the trap flag does nothing");
	}
	CHECK_EQ(fault.count, before + 1);
	CHECK_EQ(fault.signal, SIGTRAP);
	CHECK_EQ(fault.code, TRAP_TRACE);
	puts("single step: SIGTRAP");
}

static void beyond_file(void)
{
	char path[256], *map;
	int fd = (int)SYS(open(ukl_tmp(path, "segv"), O_RDWR | O_CREAT | O_EXCL, 0600));

	SYS(unlink(path));
	SYS(ftruncate(fd, (off_t)PAGE));
	map = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	map[1] = 1;
	expect(SIGBUS, load, (uintptr_t)map + PAGE, "a read beyond the end of a mapped file");
	CHECK_EQ(fault.code, BUS_ADRERR);
	CHECK(fault.address == (uintptr_t)map + PAGE);
	SYS(munmap(map, 2 * PAGE));
	SYS(close(fd));
	puts("beyond the end of a mapped file: SIGBUS");
}

static void system_calls(void)
{
	static const uintptr_t bad[] = {0xffffffff81000000UL, 0xffffffffc0000000UL, 0xffffffffc0001000UL, 0xffff888000000000UL,
					0xffffffffff600000UL, 0xffffc90000000000UL, 0x8000000000000000UL, 0x00007ffffffff000UL,
					0};
	char path[256];
	int fd = (int)SYS(open(ukl_tmp(path, "segv"), O_RDWR | O_CREAT | O_EXCL, 0600)), zero = (int)SYS(open("/dev/zero", O_RDWR));
	int ends[2];
	struct stat status;

	SYS(pipe(ends));
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		void *const at = (void *)bad[i];
		struct iovec vector = {at, 16};

		/* Raw calls: libc must not look at the buffer first. */
		CHECK_FAILS(syscall(SYS_write, ends[1], at, 16), EFAULT);
		CHECK_FAILS(syscall(SYS_write, fd, at, 16), EFAULT);
		CHECK_FAILS(syscall(SYS_read, zero, at, 16), EFAULT);
		CHECK_FAILS(syscall(SYS_writev, ends[1], &vector, 1), EFAULT);
		CHECK_FAILS(syscall(SYS_readv, zero, &vector, 1), EFAULT);
		CHECK_FAILS(syscall(SYS_writev, ends[1], at, 1), EFAULT);
		CHECK_FAILS(syscall(SYS_open, at, O_RDONLY), EFAULT);
		CHECK_FAILS(syscall(SYS_stat, "/", at), EFAULT);
		CHECK_FAILS(syscall(SYS_uname, at), EFAULT);
		CHECK_FAILS(syscall(SYS_pipe, at), EFAULT);
		CHECK_FAILS(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, at), EFAULT);
	}
	SYS(fstat(fd, &status));
	CHECK_EQ(status.st_size, 0);
	/* A buffer of the right length at the very end of what is mapped is no error; one byte more is a short write. */
	{
		char *map = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		CHECK(map != MAP_FAILED);
		SYS(munmap(map + PAGE, PAGE));
		CHECK_EQ(syscall(SYS_write, fd, map + PAGE - 10, 10), 10);
		CHECK_EQ(syscall(SYS_read, zero, map + PAGE - 10, 10), 10);
		CHECK_FAILS(syscall(SYS_write, ends[1], map + PAGE, 10), EFAULT);
		SYS(munmap(map, PAGE));
	}
	SYS(close(fd));
	SYS(close(zero));
	SYS(close(ends[0]));
	SYS(close(ends[1]));
	SYS(unlink(path));
	puts("bad addresses in system calls: EFAULT");
}

static volatile sig_atomic_t nested;

static void on_nested(int number)
{
	(void)number;
	if (++nested < 5)
		load(nowhere);
	siglongjmp(recover, 1);
}

/* A fault within the handler: the frames pile up on the alternate stack, the outermost recovery point is taken. */
static void nesting(void)
{
	ukl_handle(SIGSEGV, on_nested, SA_ONSTACK | SA_NODEFER);
	if (sigsetjmp(recover, 1) == 0)
		load(nowhere);
	CHECK_EQ(nested, 5);
	puts("faults within the handler: 5 deep");
}

static void crash(int how)
{
	static void (*const access[])(uintptr_t) = {load, store, jump, undefined, breakpoint, divide};

	for (int number = 1; number < 32; number++)
		if (number != SIGKILL && number != SIGSTOP)
			ukl_handle(number, SIG_DFL, 0);
	access[how](nowhere);
	_exit(1);
}

static void deaths(void)
{
	static const int want[] = {SIGSEGV, SIGSEGV, SIGSEGV, SIGILL, SIGTRAP, SIGFPE};
	pid_t child;

	for (int how = 0; how < 6; how++) {
		child = (pid_t)SYS(fork());
		if (child == 0)
			crash(how);
		ukl_wait_signal(child, want[how]);
	}
	child = (pid_t)SYS(fork());
	if (child == 0) {
		/* A blocked SIGSEGV cannot be held back: the kernel kills. */
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, SIGSEGV);
		SYS(sigprocmask(SIG_BLOCK, &set, NULL));
		load(nowhere);
		_exit(1);
	}
	ukl_wait_signal(child, SIGSEGV);
	child = (pid_t)SYS(fork());
	if (child == 0) {
		/* No place for the signal frame: an alternate stack in the kernel's half. */
		stack_t stack = {.ss_sp = (void *)0xffffffff81000000UL, .ss_size = 65536};

		SYS(sigaltstack(&stack, NULL));
		load(nowhere);
		_exit(1);
	}
	ukl_wait_signal(child, SIGSEGV);
	child = (pid_t)SYS(fork());
	if (child == 0)
		abort();
	ukl_wait_signal(child, SIGABRT);
	puts("without a handler, blocked, with no stack, abort: killed by the right signal");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	static const int caught[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
	stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};

	ukl_begin("segv");
	SYS(sigaltstack(&stack, NULL));
	for (size_t i = 0; i < sizeof caught / sizeof *caught; i++)
		ukl_handle_info(caught[i], on_fault, SA_ONSTACK);
	null_pages();
	protections();
	crossing();
	wild_jumps();
	other_traps();
	single_step();
	beyond_file();
	system_calls();
	nesting();
	deaths();
	return ukl_end();
}
