/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rest: setjmp, ucontext, random bytes, clocks, auxiliary vector, dlopen that must fail, paths, environment, locale, limits,
 * affinity, robust futexes across processes, mathematics (IFUNC variants), sorting, time zones.
 */
#include "uklcheck.h"

#include <dirent.h>
#include <dlfcn.h>
#include <elf.h>
#include <fenv.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <search.h>
#include <stddef.h>
#include <setjmp.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <wchar.h>
#include <wctype.h>

static jmp_buf jump_back;
static int unwound;
static volatile int thrower;

__attribute__((noinline)) static void throw_from(int depth)
{
	volatile char frame[100];

	frame[0] = (char)depth;
	if (depth == thrower)
		longjmp(jump_back, 42);
	if (depth < -1)
		return;
	throw_from(depth - 1);
	unwound += frame[0];
}

static void long_jumps(void)
{
	volatile int rounds = 0;

	for (rounds = 0; rounds < 1000; rounds++) {
		int got = setjmp(jump_back);

		if (got == 0)
			throw_from(20);
		CHECK_EQ(got, 42);
	}
	CHECK_EQ(unwound, 0);
	printf("longjmp: %d times\n", rounds);
}

static ucontext_t main_context, worker_context[3];
static int steps[3];

static void worker(int self, int add)
{
	for (int i = 0; i < 1000; i++) {
		steps[self] += add;
		CHECK(swapcontext(&worker_context[self], self == 2 ? &main_context : &worker_context[self + 1]) == 0);
	}
}

static void contexts(void)
{
	static char stack[3][65536];

	for (volatile int i = 0; i < 3; i++) {
		CHECK(getcontext(&worker_context[i]) == 0);
		worker_context[i].uc_stack.ss_sp = stack[i];
		worker_context[i].uc_stack.ss_size = sizeof stack[i];
		worker_context[i].uc_link = &main_context;
		makecontext(&worker_context[i], (void (*)(void))worker, 2, i, i + 1);
	}
	for (int i = 0; i < 1000; i++)
		CHECK(swapcontext(&main_context, &worker_context[0]) == 0);
	CHECK_EQ(steps[0] + steps[1] + steps[2], 6000);
	/* Each ends by returning, which goes on with uc_link. */
	for (int i = 0; i < 3; i++)
		CHECK(swapcontext(&main_context, &worker_context[i]) == 0);
	puts("makecontext, swapcontext: 4000 switches");
}

static void random_bytes(void)
{
	static unsigned char a[256], b[256];
	unsigned ones = 0;

	CHECK_EQ(getrandom(a, sizeof a, 0), sizeof a);
	CHECK_EQ(getentropy(b, sizeof b), 0);
	CHECK(memcmp(a, b, sizeof a) != 0);
	for (size_t i = 0; i < sizeof a; i++)
		ones += (unsigned)__builtin_popcount(a[i]);
	CHECK(ones > 512 && ones < 1536);
	CHECK_FAILS(syscall(SYS_getrandom, (void *)0xffffffff81000000UL, 16, 0), EFAULT);
	puts("getrandom: ok");
}

static void clocks(void)
{
	static const clockid_t ids[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME,
					CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME_COARSE};
	struct timespec last, now, resolution;
	struct timeval of_day;
	long long before;

	for (size_t id = 0; id < sizeof ids / sizeof *ids; id++) {
		SYS(clock_getres(ids[id], &resolution));
		CHECK(resolution.tv_sec == 0 && resolution.tv_nsec > 0);
		SYS(clock_gettime(ids[id], &last));
		if (ids[id] == CLOCK_REALTIME || ids[id] == CLOCK_REALTIME_COARSE)
			continue; /* may be set back */
		for (int i = 0; i < 20000; i++) {
			SYS(clock_gettime(ids[id], &now));
			CHECK(now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec));
			CHECK(now.tv_nsec >= 0 && now.tv_nsec < 1000000000);
			last = now;
		}
	}
	SYS(gettimeofday(&of_day, NULL));
	CHECK(llabs((long long)of_day.tv_sec - (long long)time(NULL)) <= 2);
	CHECK(of_day.tv_sec > 946684800); /* 2000-01-01: somebody set the clock */
	before = ukl_now_ms();
	ukl_sleep_ms(30);
	CHECK(ukl_now_ms() - before >= 30);
	SYS(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &last));
	for (volatile int i = 0; i < 3000000; i++)
		;
	SYS(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now));
	CHECK(now.tv_sec > last.tv_sec || now.tv_nsec > last.tv_nsec);
	CHECK(clock() > 0);
	puts("clocks never go back: ok");
}

/* The vDSO reads clocks without a system call: they are there where the system call is forbidden. */
static void clocks_without_calls(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
	pid_t child;
	int status;

	CHECK(getauxval(AT_SYSINFO_EHDR) != 0);
	fflush(stdout);
	child = fork();
	if (child == 0) {
		struct timespec now = {0, 0};

		SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
		CHECK_FAILS(syscall(SYS_clock_gettime, CLOCK_MONOTONIC_COARSE, &now), EPERM);
		SYS(clock_gettime(CLOCK_MONOTONIC_COARSE, &now));
		CHECK(now.tv_sec > 0 || now.tv_nsec > 0);
		_exit(0);
	}
	SYS(waitpid(child, &status, 0));
	CHECK_EQ(status, 0);
	puts("clocks without system calls: ok");
}

static void auxiliary(int argc, char **argv)
{
	const unsigned char *random = (const unsigned char *)getauxval(AT_RANDOM);
	const Elf64_Phdr *header = (const Elf64_Phdr *)getauxval(AT_PHDR);
	size_t count = getauxval(AT_PHNUM), loads = 0;
	unsigned mixed = 0;

	CHECK_EQ(getauxval(AT_PAGESZ), 4096);
	CHECK_EQ(getauxval(AT_UID), getuid());
	CHECK_EQ(getauxval(AT_SECURE), 0);
	CHECK(getauxval(AT_CLKTCK) > 0);
	CHECK(getauxval(AT_ENTRY) != 0);
	CHECK(getauxval(AT_EXECFN) != 0 && strlen((const char *)getauxval(AT_EXECFN)) > 0);
	CHECK(random != NULL);
	for (int i = 0; i < 16; i++)
		mixed |= random[i];
	CHECK(mixed != 0);
	CHECK(header != NULL && count > 2 && count < 64);
	CHECK_EQ(getauxval(AT_PHENT), sizeof *header);
	for (size_t i = 0; i < count; i++)
		loads += header[i].p_type == PT_LOAD;
	CHECK(loads >= 2);
	CHECK(argc >= 1 && argv[argc] == NULL);
	CHECK_STR(program_invocation_name, argv[0]);
	puts("auxiliary vector: ok");
}

/* In a static program dlopen of what is not there fails, with a message, and does not spin or crash. */
static void dynamic_loading(void)
{
	void *handle = dlopen("libukl-is-not-there.so.9", RTLD_NOW);
	const char *error = dlerror();

	CHECK(handle == NULL);
	CHECK(error != NULL && strstr(error, "libukl-is-not-there.so.9") != NULL);
	CHECK(dlerror() == NULL);
	puts("dlopen: fails with a message");
}

static void paths(void)
{
	char folder[256], inner[PATH_MAX + 8], link[PATH_MAX + 8], resolved[PATH_MAX], current[PATH_MAX], *got;
	int entries = 0;
	DIR *directory;

	ukl_tmp(folder, "misc");
	SYS(mkdir(folder, 0700));
	CHECK(realpath(folder, resolved) != NULL);
	snprintf(inner, sizeof inner, "%s/inner", resolved);
	SYS(mkdir(inner, 0700));
	snprintf(link, sizeof link, "%s/link", resolved);
	SYS(symlink("inner/../inner", link));
	CHECK(realpath(link, current) != NULL);
	CHECK_STR(current, inner);
	CHECK(realpath("/no/such/../thing", current) == NULL && errno == ENOENT);
	SYS(chdir(link));
	got = getcwd(NULL, 0);
	CHECK(got != NULL);
	CHECK_STR(got, inner);
	free(got);
	SYS(chdir(".."));
	directory = opendir(".");
	CHECK(directory != NULL);
	while (readdir(directory))
		entries++;
	CHECK_EQ(entries, 4);
	CHECK_EQ(closedir(directory), 0);
	SYS(chdir("/"));
	SYS(unlink(link));
	SYS(rmdir(inner));
	SYS(rmdir(resolved));
	CHECK(readlink("/proc/self/cwd", current, sizeof current) == 1 && current[0] == '/');
	puts("paths: ok");
}

static void environment(void)
{
	extern char **environ;
	char name[32];
	int count = 0;

	for (int i = 0; i < 300; i++) {
		snprintf(name, sizeof name, "UKL_VARIABLE_%d", i);
		SYS(setenv(name, name + 4, 1));
	}
	for (char **entry = environ; *entry; entry++)
		count += strncmp(*entry, "UKL_VARIABLE_", 13) == 0;
	CHECK_EQ(count, 300);
	CHECK_STR(getenv("UKL_VARIABLE_123"), "VARIABLE_123");
	SYS(unsetenv("UKL_VARIABLE_123"));
	CHECK(getenv("UKL_VARIABLE_123") == NULL);
	SYS(clearenv());
	CHECK(environ == NULL || *environ == NULL);
	puts("environment: ok");
}

/* Only what is compiled in: a bare guest has no locale files. */
static void locales(void)
{
	wchar_t wide[8];
	char narrow[16];

	CHECK_STR(setlocale(LC_ALL, NULL), "C");
	CHECK_STR(setlocale(LC_ALL, "POSIX"), "C");
	CHECK(setlocale(LC_ALL, "xx_XX.NOSUCH") == NULL);
	CHECK_EQ(mbstowcs(wide, "abc", 8), 3);
	CHECK_EQ(towupper(wide[1]), L'B');
	CHECK_EQ(wctomb(narrow, L'z'), 1);
	CHECK_STR(localeconv()->decimal_point, ".");
	printf("locale C: %ls %c %d\n", wide, narrow[0], wcscmp(wide, L"abd") < 0);
}

static void limits(void)
{
	struct rlimit files, old, half;
	cpu_set_t cpus, one;
	struct utsname name;
	struct sysinfo info;
	int cpu, fd;

	CHECK_EQ(sysconf(_SC_PAGESIZE), 4096);
	CHECK(sysconf(_SC_NPROCESSORS_ONLN) >= 1);
	CHECK(sysconf(_SC_PHYS_PAGES) > 0);
	CHECK(sysconf(_SC_OPEN_MAX) > 0);
	SYS(prlimit(0, RLIMIT_NOFILE, NULL, &files));
	half = (struct rlimit){32, files.rlim_max};
	SYS(prlimit(0, RLIMIT_NOFILE, &half, &old));
	fd = 0;
	while (fd >= 0)
		fd = dup(STDOUT_FILENO);
	CHECK_EQ(errno, EMFILE);
	SYS(prlimit(0, RLIMIT_NOFILE, &old, NULL));
	for (fd = 3; fd < 32; fd++)
		close(fd);

	SYS(sched_getaffinity(0, sizeof cpus, &cpus));
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &cpus))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		SYS(sched_setaffinity(0, sizeof one, &one));
		CHECK_EQ(sched_getcpu(), cpu);
	}
	CPU_ZERO(&one);
	CHECK_FAILS(sched_setaffinity(0, sizeof one, &one), EINVAL);
	SYS(sched_setaffinity(0, sizeof cpus, &cpus));

	SYS(uname(&name));
	CHECK_STR(name.sysname, "Linux");
	CHECK_STR(name.machine, "x86_64");
	SYS(sysinfo(&info));
	CHECK(info.totalram > 0 && info.procs > 0);
	SYS(prctl(PR_SET_NAME, "renamed", 0, 0, 0));
	{
		char text[16] = "";

		SYS(prctl(PR_GET_NAME, text, 0, 0, 0));
		CHECK_STR(text, "renamed");
	}
	puts("limits, affinity, names: ok");
}

/* A robust, shared mutex whose owner's process dies. */
static void robust_across_processes(void)
{
	pthread_mutexattr_t attributes;
	pthread_mutex_t *mutex = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(mutex != MAP_FAILED);
	CHECK_OK(pthread_mutexattr_init(&attributes));
	CHECK_OK(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
	for (int inherit = 0; inherit < 2; inherit++) {
		CHECK_OK(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
		CHECK_OK(pthread_mutexattr_setprotocol(&attributes, inherit ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE));
		CHECK_OK(pthread_mutex_init(mutex, &attributes));
		for (int i = 0; i < 5; i++) {
			pid_t child = (pid_t)SYS(fork());

			if (child == 0) {
				CHECK_OK(pthread_mutex_lock(mutex));
				if (i % 2)
					raise(SIGKILL);
				_exit(0);
			}
			if (i % 2)
				ukl_wait_signal(child, SIGKILL);
			else
				ukl_wait_exit(child, 0);
			CHECK_EQ(pthread_mutex_lock(mutex), EOWNERDEAD);
			CHECK_OK(pthread_mutex_consistent(mutex));
			CHECK_OK(pthread_mutex_unlock(mutex));
		}
		CHECK_OK(pthread_mutex_destroy(mutex));
	}
	CHECK_OK(pthread_mutexattr_destroy(&attributes));
	SYS(munmap(mutex, 4096));
	puts("robust mutexes across processes: ok");
}

/* libm and libc choose variants by IFUNC: IRELATIVE relocations must have been applied. */
static void mathematics(void)
{
	volatile double x = 0.75, zero = 0;
	char text[64];

	printf("%.10f %.10f %.10f %.10f %.10f\n", sin(x), cos(x), exp(x), log(x), pow(x, 2.5));
	printf("%.1f %.1f %.1f %.10f\n", floor(-x), ceil(x), rint(2.5), fma(x, x, 1));
	CHECK(isinf(1 / zero) && isnan(zero / zero));
	feclearexcept(FE_ALL_EXCEPT);
	x = 1 / zero;
	CHECK(fetestexcept(FE_DIVBYZERO));
	CHECK_EQ(fesetround(FE_UPWARD), 0);
	CHECK(nearbyint(2.1) == 3.0);
	CHECK_EQ(fesetround(FE_TONEAREST), 0);
	CHECK(strtod("1e-320", NULL) > 0);
	snprintf(text, sizeof text, "%.15Lg", 1.0L / 3);
	CHECK_STR(text, "0.333333333333333");
}

static void strings(void)
{
	static char a[5000], b[5000];

	for (size_t length = 0; length < 600; length += 7)
		for (size_t offset = 0; offset < 64; offset += 5) {
			memset(a, 'a', sizeof a);
			memset(b, 'b', sizeof b);
			a[offset + length] = 0;
			CHECK_EQ(strlen(a + offset), length);
			memcpy(b + 64 - offset, a + offset, length + 1);
			CHECK_EQ(strcmp(b + 64 - offset, a + offset), 0);
			CHECK(memchr(a + offset, 0, length + 1) == a + offset + length);
			memmove(a + offset + 3, a + offset, length + 1);
			CHECK_EQ(memcmp(a + offset + 3, b + 64 - offset, length + 1), 0);
			CHECK(strchr(b + 64 - offset, 'z') == NULL);
		}
	CHECK(strstr("a needle in a haystack", "needle") != NULL);
	puts("string functions of every alignment: ok");
}

static int ascending(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

static void sorting(void)
{
	static uint64_t value[50000];
	uint64_t state = 11;

	for (size_t i = 0; i < 50000; i++)
		value[i] = ukl_random(&state);
	qsort(value, 50000, sizeof *value, ascending);
	for (size_t i = 1; i < 50000; i++)
		CHECK(value[i - 1] <= value[i]);
	for (size_t i = 0; i < 50000; i += 777)
		CHECK(bsearch(&value[i], value, 50000, sizeof *value, ascending) != NULL);
	printf("sorted: %016llx\n", (unsigned long long)ukl_hash(0, value, sizeof value));
}

static void calendar(void)
{
	time_t moment = 1735689600;
	struct tm parts;
	char text[64];

	SYS(setenv("TZ", "UTC0", 1));
	tzset();
	CHECK(gmtime_r(&moment, &parts) != NULL);
	strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S %a %j", &parts);
	printf("%s\n", text);
	SYS(setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3", 1));
	tzset();
	moment += 180 * 86400;
	CHECK(localtime_r(&moment, &parts) != NULL);
	strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S %Z", &parts);
	printf("%s\n", text);
	CHECK_EQ(mktime(&parts), moment);
}

int main(int argc, char **argv)
{
	ukl_begin("misc");
	auxiliary(argc, argv);
	long_jumps();
	contexts();
	random_bytes();
	clocks();
	clocks_without_calls();
	dynamic_loading();
	paths();
	locales();
	limits();
	robust_across_processes();
	mathematics();
	strings();
	sorting();
	environment();
	calendar();
	return ukl_end();
}
