/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Usage: attack [-v | --self-test]
 *
 * One line an attempt on stdout: "refused: WHAT", or "SUCCEEDED: WHAT: HOW". Exit status 0 when all were refused, 1
 * when one succeeded, 2 when the program itself could not do its work. -v says on stderr how each was refused.
 *
 * Root is expected (attempts that should be made without privilege drop it). The environment names the UKL process beside us
 * (see programs/beside.c); without it an ordinary process stands in, and guessed addresses for the application's.
 *
 * --self-test takes a page of our own for the kernel's half: attempts to reach, read or map it then succeed, and must be seen to.
 */
#include "attack.h"

#include <linux/capability.h>
#include <dirent.h>
#include <grp.h>
#include <stdarg.h>
#include <sys/prctl.h>

#define LIMIT_SECONDS 60

/* Shared between an attempt and its runner. */
struct report {
	volatile int escaped;
	char how[200];
	char notes[2000];
};

struct goal goals[GOALS] = {
	[GOAL_OWN] = {"own code", 0, 0},
	[GOAL_APP] = {"application text", 0, 1},
	[GOAL_FUNCTION] = {"a kernel function", 0, 1},
	[GOAL_TEXT] = {"kernel text", 0xffffffff81000000UL, 1},
};
struct surroundings here;

static struct report *report;
static int verbose, successes;

void escaped(const char *format, ...)
{
	va_list args;

	report->escaped = 1;
	va_start(args, format);
	vsnprintf(report->how, sizeof report->how, format, args);
	va_end(args);
	_exit(0);
}

void note(const char *format, ...)
{
	size_t used = strlen(report->notes);
	va_list args;

	va_start(args, format);
	if (used + 2 < sizeof report->notes) {
		vsnprintf(report->notes + used, sizeof report->notes - used - 2, format, args);
		strcat(report->notes, "; ");
	}
	va_end(args);
}

void become_nobody(void)
{
	if (geteuid() == 0 && (setgroups(0, NULL) != 0 || setresgid(NOBODY, NOBODY, NOBODY) != 0 ||
			       setresuid(NOBODY, NOBODY, NOBODY) != 0)) {
		perror("attack: cannot become nobody");
		_exit(2);
	}
	/* Otherwise /proc/self belongs to root still, and the attempt is refused for the wrong reason. */
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

void drop_rawio(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &header, caps) == 0) {
		caps[0].effective &= ~(1u << CAP_SYS_RAWIO);
		caps[0].permitted &= ~(1u << CAP_SYS_RAWIO);
		caps[0].inheritable &= ~(1u << CAP_SYS_RAWIO);
		if (syscall(SYS_capset, &header, caps) == 0)
			return;
	}
	perror("attack: cannot drop CAP_SYS_RAWIO");
	_exit(2);
}

/* The attempt has a process group of its own, so that what it leaves behind ends with it. */
static int run_attempt(attempt_fn *run, long argument, int nobody)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0) {
		setpgid(0, 0);
		alarm(LIMIT_SECONDS);
		probe_setup();
		if (nobody)
			become_nobody();
		run(argument);
		_exit(0);
	}
	if (child < 0) {
		perror("attack: fork");
		exit(2);
	}
	setpgid(child, child);
	while (waitpid(child, &status, 0) != child)
		;
	kill(-child, SIGKILL);
	while (waitpid(-child, NULL, 0) > 0)
		;
	return status;
}

static void judge(attempt_fn *run, long argument, int nobody, const char *format, va_list args)
{
	char what[200];
	int status;

	vsnprintf(what, sizeof what, format, args);
	memset(report, 0, sizeof *report);
	status = run_attempt(run, argument, nobody);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 2) {
		fprintf(stderr, "attack: \"%s\" could not be tried: %s\n", what, report->notes);
		exit(2);
	}
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) {
		/* Neither refused nor proven: whatever spins there is not understood. */
		printf("SUCCEEDED: %s: did not end\n", what);
		successes++;
		return;
	}
	if (report->escaped) {
		printf("SUCCEEDED: %s: %s\n", what, report->how);
		successes++;
		return;
	}
	printf("refused: %s\n", what);
	if (verbose) {
		if (WIFSIGNALED(status))
			fprintf(stderr, "    killed by SIG%s; %s\n", sigabbrev_np(WTERMSIG(status)), report->notes);
		else
			fprintf(stderr, "    %s\n", report->notes);
	}
}

void try_it(attempt_fn *run, long argument, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	judge(run, argument, 0, format, args);
	va_end(args);
}

void try_as_nobody(attempt_fn *run, long argument, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	judge(run, argument, 1, format, args);
	va_end(args);
}

/*
 * A kernel function that does next to nothing and returns: reaching it at CPL 0 shows by its return to our stack.
 * Without kallsyms a place in kernel text has to do.
 */
static uintptr_t find_function(void)
{
	static const char *const harmless[] = {"noop_fsync", "always_delete_dentry", "simple_nosetlease"};
	FILE *symbols = fopen("/proc/kallsyms", "r");
	char line[512], name[256];
	unsigned long address, found = 0;
	size_t best = sizeof harmless / sizeof *harmless;

	while (symbols && fgets(line, sizeof line, symbols)) {
		if (sscanf(line, "%lx %*c %255s", &address, name) != 2 || address == 0)
			continue;
		for (size_t i = 0; i < best; i++)
			if (strcmp(name, harmless[i]) == 0) {
				best = i;
				found = address;
			}
	}
	if (symbols)
		fclose(symbols);
	return found ? found : 0xffffffff81000200UL;
}

static uintptr_t address_from(const char *variable, uintptr_t otherwise)
{
	const char *text = getenv(variable);
	uintptr_t value = text ? strtoul(text, NULL, 16) : 0;

	/* On plain Linux the program beside us lies in the user half, where our own code may be. */
	return value >= 0xffff800000000000UL ? value : otherwise;
}

/* ret; and, 16 bytes on: mov %cs, %eax; mov %eax, (%rdi); ret. */
static void pretend(void)
{
	static const unsigned char code[] = {0xc3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x8c, 0xc8, 0x89, 0x07, 0xc3};
	unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		exit(2);
	memcpy(page, code, sizeof code);
	mprotect(page, 4096, PROT_READ | PROT_EXEC);
	for (int goal = GOAL_APP; goal < GOALS; goal++)
		goals[goal].at = (uintptr_t)page;
	here.app_return = (uintptr_t)page;
	here.app_cpl = (uintptr_t)page + 16;
}

static pid_t stand_in(void)
{
	pid_t child = fork();

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return child;
}

static void look_around(void)
{
	const char *victim = getenv("UKL_VICTIM"), *stub = getenv("UKL_STUB"), *tmp = getenv("UKL_TMP");
	ssize_t length = readlink("/proc/self/exe", here.self, sizeof here.self - 1);

	if (length <= 0 || geteuid() != 0) {
		fprintf(stderr, "attack: needs %s\n", length <= 0 ? "/proc" : "root");
		exit(2);
	}
	here.victim = victim ? atoi(victim) : stand_in();
	if (kill(here.victim, 0) != 0) {
		fprintf(stderr, "attack: there is no process %d beside us\n", (int)here.victim);
		exit(2);
	}
	snprintf(here.stub, sizeof here.stub, "%s", stub ? stub : "/ukl/app");
	here.ukl = address_from("UKL_TEXT", 0) != 0;
	here.app_return = address_from("UKL_TEXT", 0xffffffffc0001000UL);
	here.app_cpl = address_from("UKL_CPL", 0xffffffffc0001010UL);
	goals[GOAL_OWN].at = (uintptr_t)&probe_entry;
	goals[GOAL_APP].at = here.app_return;
	goals[GOAL_FUNCTION].at = find_function();

	/* A folder where nobody may write. */
	if (!tmp) {
		tmp = "/tmp";
		mkdir(tmp, 01777);
	}
	snprintf(here.folder, sizeof here.folder, "%s/attack-%d", tmp, (int)getpid());
	if (mkdir(here.folder, 0755) != 0 || chown(here.folder, NOBODY, NOBODY) != 0) {
		perror("attack: folder");
		exit(2);
	}
}

/* Where nobody cannot reach the folder, attempts would be refused for the wrong reason. */
static void reach_folder(long unused)
{
	(void)unused;
	if (access(here.folder, R_OK | W_OK | X_OK) != 0) {
		note("%s is out of reach", here.folder);
		_exit(2);
	}
	escaped("as it should");
}

/* An attempt that succeeded or was killed leaves its files. */
static void clean_up(void)
{
	DIR *folder = opendir(here.folder);
	struct dirent *entry;

	while (folder && (entry = readdir(folder)))
		unlinkat(dirfd(folder), entry->d_name, 0);
	if (folder)
		closedir(folder);
	if (rmdir(here.folder) != 0)
		perror("attack: files were left behind");
}

int main(int argc, char **argv)
{
	unsigned cpl = probe_cpl();

	if (getenv("UKL_PROBE"))
		_exit(cpl == 0 ? PROBE_CPL0 : PROBE_CPL3);
	if (argc > 1 && strcmp(argv[1], "--sleep") == 0) {
		/* A command that does nothing for a while (execs.c). */
		alarm(20);
		pause();
	}
	verbose = argc > 1 && strcmp(argv[1], "-v") == 0;
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (report == MAP_FAILED) {
		perror("attack: mmap");
		return 2;
	}
	look_around();
	if (run_attempt(reach_folder, 0, 1) != 0 || !report->escaped) {
		fprintf(stderr, "attack: %s\n", report->notes);
		clean_up();
		return 2;
	}
	if (argc > 1 && strcmp(argv[1], "--self-test") == 0)
		pretend();
	cpu_attempts();
	odd_attempts();
	frames_attempts();
	tracing_attempts();
	memory_attempts();
	victim_attempts();
	execs_attempts();
	clean_up();
	if (successes) {
		printf("attack: %d attempts SUCCEEDED\n", successes);
		return 1;
	}
	puts("attack: all refused");
	return 0;
}
