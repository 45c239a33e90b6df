/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calling the kernel instead of trapping, for the programs that test it. As UKL the kernel's own entries are looked up in
 * /proc/kallsyms when the program runs; in ring 3 `syscall` stands in, so that both do the same.
 */
#ifndef UKLCALL_H
#define UKLCALL_H

#include "uklcheck.h"

#include <sys/syscall.h>

/* What an application calls with `call *%rcx`. */
extern void *call_entry;
void *call_entry;

__asm__(".text\n"
	"ring3_entry:\n"
	"	syscall\n"
	"	ret\n");
extern char ring3_entry[];

/* The address of one of the kernel's functions; 0 when it has none of that name. */
UKL_UNUSED static unsigned long call_symbol(const char *name)
{
	FILE *file = fopen("/proc/kallsyms", "r");
	unsigned long address, found = 0;
	char symbol[512];

	CHECK(file != NULL);
	while (!found && fscanf(file, "%lx %*c %511[^\n]", &address, symbol) == 2)
		if (strcmp(symbol, name) == 0)
			found = address;
	fclose(file);
	return found;
}

/* What C calls, for no arguments, up to three, up to six. */
static void *c_entries[3];

UKL_UNUSED static void call_begin(void)
{
	static const char *const names[] = {"__ukl_syscall0", "__ukl_syscall3", "__ukl_syscall6"};

	call_entry = ring3_entry;
	if ((ukl_cs() & 3) == 0)
		call_entry = (void *)call_symbol("__ukl_syscall");
	CHECK(call_entry != NULL);
	for (int n = 0; n < 3; n++) {
		c_entries[n] = ring3_entry;
		if (call_entry != ring3_entry)
			c_entries[n] = (void *)call_symbol(names[n]);
		CHECK(c_entries[n] != NULL);
	}
}

/* By `entry`, and out of reach of the red zone; the raw result, -errno included. */
static inline long call_by(void *entry, long rax, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("lea -128(%%rsp), %%rsp\n\t"
			 "call *%%rcx\n\t"
			 "lea 128(%%rsp), %%rsp"
			 : "+a"(rax), "+c"(entry)
			 : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "r11", "memory", "cc");
	return rax;
}

UKL_UNUSED static long called(long nr, long a, long b, long c, long d, long e, long f)
{
	return call_by(call_entry, nr, a, b, c, d, e, f);
}

/* By an entry for C, with a number that the kernel has. */
static inline long call_c(void *entry, long rax, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("lea -128(%%rsp), %%rsp\n\t"
			 "call *%%rcx\n\t"
			 "lea 128(%%rsp), %%rsp"
			 : "+a"(rax), "+c"(entry), "+D"(a), "+S"(b), "+d"(c), "+r"(r10), "+r"(r8), "+r"(r9)
			 :
			 : "r11", "memory", "cc");
	return rax;
}

/* As C does; by `called`'s way where that cannot. */
UKL_UNUSED static long called_by_c(long nr, long a, long b, long c, long d, long e, long f)
{
	switch (nr) {
	case SYS_getppid:
	case SYS_fork:
		return call_c(c_entries[0], nr, a, b, c, d, e, f);
	case SYS_read:
	case SYS_write:
	case SYS_nanosleep:
	case SYS_exit_group:
	case SYS_sched_setaffinity:
		return call_c(c_entries[1], nr, a, b, c, d, e, f);
	case 9999:
		return called(nr, a, b, c, d, e, f);
	default:
		return call_c(c_entries[2], nr, a, b, c, d, e, f);
	}
}

/* The same with the instruction. */
UKL_UNUSED static long trapped(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "+a"(nr)
			 : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory", "cc");
	return nr;
}

/* A function of the kernel's, by __ukl_call, whose address is `by`. UKL only. */
UKL_UNUSED static long call_kernel(unsigned long by, unsigned long function, long a, long b, long c)
{
	return call_by((void *)by, (long)function, a, b, c, 0, 0, 0);
}

/* Whether system calls of this thread bypass entry and exit work from now on; whether they can, where they are to. */
UKL_UNUSED static int call_bypass(int on)
{
	static unsigned long by, set;

	if (call_entry == ring3_entry)
		return 0;
	if (!by) {
		by = call_symbol("__ukl_call");
		set = call_symbol("ukl_set_bypass");
	}
	return set && call_kernel(by, set, on, 0, 0) == 0;
}

#endif
