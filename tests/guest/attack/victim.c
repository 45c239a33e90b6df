/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An unprivileged user against the UKL process of another user. Whoever writes its registers, stack or text owns the
 * kernel, so no way may be open that ordinary processes of root do not have closed.
 */
#include "attack.h"

#include <linux/kcmp.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>

static char path_room[128];

static const char *of_victim(const char *file)
{
	snprintf(path_room, sizeof path_room, "/proc/%d/%s", (int)here.victim, file);
	return path_room;
}

static void by_ptrace(long unused)
{
	(void)unused;
	MUST_FAIL(ptrace(PTRACE_ATTACH, here.victim, 0, 0));
	MUST_FAIL(ptrace(PTRACE_SEIZE, here.victim, 0, 0));
	MUST_FAIL(ptrace(PTRACE_POKETEXT, here.victim, here.app_return, 0xc3));
}

static void by_vm_calls(long unused)
{
	char bytes[16] = {0};
	struct iovec own = {bytes, sizeof bytes};

	(void)unused;
	for (int goal = 0; goal < GOALS; goal++) {
		struct iovec other = {(void *)goals[goal].at, sizeof bytes};

		MUST_FAIL(process_vm_writev(here.victim, &own, 1, &other, 1, 0));
		MUST_FAIL(process_vm_readv(here.victim, &own, 1, &other, 1, 0));
	}
}

static void by_files(long unused)
{
	static const char *const secret[] = {"mem", "exe", "maps", "auxv", "environ", "stack", "syscall", "fd", "map_files", "root"};

	(void)unused;
	MUST_FAIL(open(of_victim("mem"), O_WRONLY));
	for (size_t i = 0; i < sizeof secret / sizeof *secret; i++)
		MUST_FAIL(open(of_victim(secret[i]), O_RDONLY));
	MUST_FAIL(open(of_victim("comm"), O_WRONLY));
	MUST_FAIL(open(of_victim("oom_score_adj"), O_WRONLY));
}

static void by_control(long unused)
{
	struct rlimit limit = {0, 0};
	cpu_set_t cpus;
	int pidfd = (int)syscall(SYS_pidfd_open, here.victim, 0);

	(void)unused;
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	MUST_FAIL(kill(here.victim, SIGSTOP));
	MUST_FAIL(kill(here.victim, SIGSEGV));
	MUST_FAIL(syscall(SYS_prlimit64, here.victim, RLIMIT_STACK, &limit, NULL));
	MUST_FAIL(sched_setaffinity(here.victim, sizeof cpus, &cpus));
	MUST_FAIL(syscall(SYS_kcmp, getpid(), here.victim, KCMP_VM, 0, 0));
	if (pidfd >= 0) {
		char byte = 0;
		struct iovec vector = {&byte, 1};

		MUST_FAIL(syscall(SYS_pidfd_getfd, pidfd, 1, 0));
		MUST_FAIL(syscall(SYS_pidfd_send_signal, pidfd, SIGSTOP, NULL, 0));
		MUST_FAIL(syscall(SYS_process_madvise, pidfd, &vector, 1, MADV_COLD, 0));
		MUST_FAIL(setns(pidfd, CLONE_NEWNS));
	}
}

/* What tells where the application is, and so where the kernel is, or reaches its memory. */
static void by_root(long unused)
{
	static const char *const secret[] = {"mem", "maps", "smaps", "auxv", "stack", "syscall", "map_files"};

	(void)unused;
	drop_rawio();
	by_ptrace(0);
	by_vm_calls(0);
	MUST_FAIL(open(of_victim("mem"), O_WRONLY));
	for (size_t i = 0; i < sizeof secret / sizeof *secret; i++) {
		char bytes[64];
		int fd = open(of_victim(secret[i]), O_RDONLY);

		/* Some ask when they are read. */
		if (fd >= 0)
			MUST_FAIL(read(fd, bytes, sizeof bytes));
	}
}

/* Root of a user namespace of one's own has all capabilities, but not over the victim. */
static void in_namespace(long which)
{
	static attempt_fn *const again[] = {by_ptrace, by_vm_calls, by_files, by_control};

	if (unshare(CLONE_NEWUSER) != 0)
		note("unshare: errno %d", errno);
	again[which](0);
}

void victim_attempts(void)
{
	static const struct {
		attempt_fn *run;
		const char *what;
	} all[] = {
		{by_ptrace, "ptrace of the UKL process"},
		{by_vm_calls, "process_vm_writev to the UKL process"},
		{by_files, "/proc files of the UKL process"},
		{by_control, "signals, limits, descriptors of the UKL process"},
	};

	if (here.ukl)
		try_it(by_root, 0, "memory, maps and registers of the UKL process by root without CAP_SYS_RAWIO");
	for (long i = 0; i < 4; i++) {
		try_as_nobody(all[i].run, 0, "%s by another user", all[i].what);
		try_as_nobody(in_namespace, i, "%s by another user, root of a user namespace", all[i].what);
	}
}
