/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program can ask of the kernel that it is a part of. For C and C++; docs/ukl-h.md says more.
 *
 * A program with this header is an ordinary one, too: what its functions do in ring 3 is said at each. There is no
 * library to link with. Errors are returned as -1, or NULL, and errno.
 */
#ifndef UKL_H
#define UKL_H

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>

/* Does this run at CPL 0, as part of the kernel? 1 or 0. */
static inline int ukl_linked(void)
{
	unsigned short cs;

	__asm__("mov %%cs, %0" : "=r"(cs));
	return !(cs & 3);
}

/*
 * Calling a function of the kernel by its name. At file scope,
 *
 *     UKL_KERNEL_FUNCTION(long long, ktime_get, void)
 *
 * defines ukl_kernel_ktime_get(), which calls ktime_get() as kernel code, on the thread's kernel stack. After the name
 * come the types of the parameters. LINK compares all with the declaration in the kernel and refuses what is not the
 * same, or not in the kernel's list (docs/ukl-h.md).
 *
 * Not in ring 3: there it is a call of address 0. Ask ukl_linked() before.
 *
 * Unsafe: arguments are the kernel's business. A pointer must be to memory of the kernel, as ukl_kernel_alloc() gives;
 * kernel code that is given memory of the program, or a wrong pointer, ends this process, or the machine.
 */
#define UKL_KERNEL_FUNCTION(ret, name, ...) UKL_FUNCTION_(".ukl.functions", ret, name, __VA_ARGS__)

/*
 * The thread's system calls do without most of what Linux does on its way in and out, where nothing waits to be done
 * (UKL BYP). on: 1 or 0. New threads and forked children inherit it. Returns 0; or -1 with ENOSYS in ring 3 or in a kernel
 * built without it, EOPNOTSUPP where the image has no UKL BYP or the kernel's parameters do not allow it.
 */
static inline int ukl_bypass(int on);

/*
 * The thread is not preempted (UKL RTC): others wait for its processor until it blocks or ends. on: 1 or 0. New threads and
 * forked children inherit it, ring-3 programs do not. Returns 0; or -1 with ENOSYS in ring 3 or in a kernel built without
 * it. Works without UKL RTC in the image, which only has it on from the start.
 *
 * To Linux it is a SCHED_FIFO task of priority 1, to which ordinary tasks leave 95 % of each second; sched_yield() gives
 * way to others of its kind. A thread that has a real-time policy of its own keeps that. Unsafe: a thread that waits for
 * another by spinning keeps it from running.
 */
static inline int ukl_run_to_completion(int on);

/*
 * As recv() and send() on a TCP socket, straight to TCP; flags are theirs. EOPNOTSUPP for another descriptor, TLS and
 * MPTCP included. In ring 3, or in a kernel built without shortcuts, recv() and send() themselves. Works without UKL
 * SHORTCUT in the image; with it, recv(), send(), read() and write() do the same by themselves.
 */
static inline ssize_t ukl_tcp_recv(int fd, void *buf, size_t size, int flags);
static inline ssize_t ukl_tcp_send(int fd, const void *buf, size_t size, int flags);

/*
 * Memory of the program that is there at once and stays: no access to it faults, and it is not paged out. size in
 * bytes; zeroed, whole pages. A forked child does not have it. The same in ring 3. EAGAIN or ENOMEM when RLIMIT_MEMLOCK
 * or the memory is not enough, EINVAL for nothing. ukl_pinned_free() takes the same size.
 */
static inline void *ukl_pinned_alloc(size_t size);
static inline void ukl_pinned_free(void *memory, size_t size);

/*
 * Memory of the kernel (vzalloc): never faults, the same in all processes, and kernel code may use it, also later and
 * elsewhere: for arguments of UKL_KERNEL_FUNCTION. size in bytes; zeroed. ENOSYS in ring 3, ENOMEM, EINVAL for nothing.
 *
 * System calls do not take it: they fail with EFAULT, as for every address of the kernel. Nobody frees it at the
 * process's end but ukl_kernel_free(), and it is not checked: writing past its end is writing to the kernel.
 */
static inline void *ukl_kernel_alloc(size_t size);
static inline void ukl_kernel_free(void *memory);

/* From here on it is about how. */

#ifdef __cplusplus
#define UKL_C_ extern "C"
#else
#define UKL_C_ extern
#endif

/*
 * A weak name, which LINK gives the kernel's address and an ordinary link 0; a function that calls it by the kernel's
 * __ukl_call (RAX: what to call; R10 in RCX's place, as in a system call); and the declaration for LINK to compare.
 */
#define UKL_FUNCTION_(section, ret, name, ...)                                                                           \
	UKL_C_ __attribute__((weak)) char __ukl_kernel_##name[];                                                         \
	UKL_C_ ret ukl_kernel_##name(__VA_ARGS__);                                                                       \
	__asm__(".pushsection .text.ukl_kernel_" #name ",\"ax\",@progbits\n"                                             \
		"	.weak ukl_kernel_" #name ", __ukl_kernel_" #name ", __ukl_call\n"                                \
		"	.hidden ukl_kernel_" #name "\n"                                                                  \
		"	.type ukl_kernel_" #name ", @function\n"                                                         \
		"ukl_kernel_" #name ":\n"                                                                                \
		"	.cfi_startproc\n"                                                                                \
		"	endbr64\n"                                                                                       \
		"	movq %rcx, %r10\n"                                                                               \
		"	movq __ukl_kernel_" #name "@GOTPCREL(%rip), %rax\n"                                              \
		"	movq __ukl_call@GOTPCREL(%rip), %rcx\n"                                                          \
		"	call *%rcx\n"                                                                                    \
		"	ret\n"                                                                                           \
		"	.cfi_endproc\n"                                                                                  \
		"	.size ukl_kernel_" #name ", . - ukl_kernel_" #name "\n"                                          \
		"	.popsection\n"                                                                                   \
		"	.pushsection " section ",\"\",@progbits\n"                                                       \
		"	.asciz \"" #name "\", \"" #ret " (" #__VA_ARGS__ ")\"\n"                                         \
		"	.popsection");

/* Those of this header may be missing in a kernel: then their address is 0, as in ring 3. */
#define UKL_OPTIONAL_(ret, name, ...) UKL_FUNCTION_(".ukl.optional", ret, name, __VA_ARGS__)
#define UKL_HAS_(name) (__ukl_kernel_##name != (char *)0)

UKL_OPTIONAL_(long, ukl_set_bypass, int)
UKL_OPTIONAL_(long, ukl_set_rtc, int)
UKL_OPTIONAL_(long, ukl_tcp_recv, int, void *, unsigned long, int)
UKL_OPTIONAL_(long, ukl_tcp_send, int, const void *, unsigned long, int)
UKL_OPTIONAL_(void *, vzalloc_noprof, unsigned long)
UKL_OPTIONAL_(void, vfree, const void *)

/* As system calls' results: from -4095 on they are errors. */
static inline long ukl_result_(long result)
{
	if (result < 0 && result >= -4095) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

static inline int ukl_bypass(int on)
{
	return (int)ukl_result_(UKL_HAS_(ukl_set_bypass) ? ukl_kernel_ukl_set_bypass(!!on) : -ENOSYS);
}

static inline int ukl_run_to_completion(int on)
{
	return (int)ukl_result_(UKL_HAS_(ukl_set_rtc) ? ukl_kernel_ukl_set_rtc(!!on) : -ENOSYS);
}

static inline ssize_t ukl_tcp_recv(int fd, void *buf, size_t size, int flags)
{
	if (!UKL_HAS_(ukl_tcp_recv))
		return recv(fd, buf, size, flags);
	return ukl_result_(ukl_kernel_ukl_tcp_recv(fd, buf, size, flags));
}

static inline ssize_t ukl_tcp_send(int fd, const void *buf, size_t size, int flags)
{
	if (!UKL_HAS_(ukl_tcp_send))
		return send(fd, buf, size, flags);
	return ukl_result_(ukl_kernel_ukl_tcp_send(fd, buf, size, flags));
}

static inline void *ukl_pinned_alloc(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	if (madvise(memory, size, MADV_DONTFORK) != 0 || mlock(memory, size) != 0) {
		int error = errno;

		munmap(memory, size);
		errno = error;
		return NULL;
	}
	return memory;
}

static inline void ukl_pinned_free(void *memory, size_t size)
{
	if (memory)
		munmap(memory, size);
}

static inline void *ukl_kernel_alloc(size_t size)
{
	void *memory = NULL;

	if (!UKL_HAS_(vzalloc_noprof))
		errno = ENOSYS;
	else if (!size)
		errno = EINVAL;
	else if (!(memory = ukl_kernel_vzalloc_noprof(size)))
		errno = ENOMEM;
	return memory;
}

static inline void ukl_kernel_free(void *memory)
{
	if (memory)
		ukl_kernel_vfree(memory);
}

#endif /* UKL_H */
