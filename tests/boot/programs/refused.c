/* What `uklimg check` warns of, tried: each line says what came of it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <unistd.h>

static sigjmp_buf back;

static void on_signal(int number)
{
	siglongjmp(back, number);
}

static void attempt(const char *name, void (*function)(void))
{
	int number = sigsetjmp(back, 1);

	if (number == 0)
		function();
	else
		printf("%s: signal %d\n", name, number);
	fflush(stdout);
}

static void int80(void)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory"); /* getpid, for 32-bit programs */
	printf("int80: %s\n", result == getpid() ? "works" : "does nothing");
}

static void run_time_code(void)
{
	unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (code == MAP_FAILED) {
		/* As a JIT compiler that finds this, do without; others write first, and make it executable then. */
		if (errno != EACCES)
			perror("mmap");
		code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		code[0] = 0xc3; /* ret */
		printf("run_time_code: %s\n", mprotect(code, 4096, PROT_READ | PROT_EXEC) ? "refused" : "allowed");
		return;
	}
	code[0] = 0xc3; /* ret */
	((void (*)(void))code)();
	puts("run_time_code: works");
}

static void executable_stack(void)
{
	int factor = 3;
	int array[] = {2, 1};
	int compare(const void *one, const void *two)
	{
		return (*(const int *)one - *(const int *)two) * factor;
	}

	qsort(array, 2, sizeof *array, compare);
	puts("executable_stack: works");
}

static void segments(void)
{
	long value;

	/* In ring 3 the base of GS is 0, and there is nothing at address 0. */
	__asm__ volatile("mov %%gs:0, %0" : "=r"(value));
	puts("segments: the kernel's");
}

static void kernel_option(void)
{
	int result = iopl(3);

	printf("kernel_option: %s\n", result == -1 && errno == ENOSYS ? "ENOSYS" : "works");
}

static void load(void)
{
	printf("dlopen: %s\n", dlopen("libm.so.6", RTLD_NOW) ? "works" : "fails");
}

static void execute(void)
{
	printf("exec: system() gives %d\n", WEXITSTATUS(system("true")));
}

static void own_path(void)
{
	char path[PATH_MAX];

	printf("own_path: %s\n", realpath("/proc/self/exe", path) ? path : "no path");
}

int main(void)
{
	signal(SIGSEGV, on_signal);
	signal(SIGILL, on_signal);
	attempt("int80", int80);
	attempt("run_time_code", run_time_code);
	attempt("executable_stack", executable_stack);
	attempt("segments", segments);
	attempt("kernel_option", kernel_option);
	attempt("dlopen", load);
	attempt("exec", execute);
	attempt("own_path", own_path);
	puts("end");
	return 0;
}
