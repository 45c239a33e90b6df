/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A UKL program with an ordinary one beside it: starts a command in ring 3 and lives on while it runs, its own state
 * checked all the time. The attack program is started so: its parent is a UKL process that it may attack.
 *
 *   beside [--how=fork|vfork|thread|direct] COMMAND [ARGUMENT...]
 *
 * The command's environment gets UKL_VICTIM (this process), UKL_TEXT (the address of a harmless function of this program's
 * text), UKL_CPL (the address of one that stores the CPL at rdi) and UKL_STUB (the path by which this program is executed).
 * The exit status is the command's, 128 + n when signal n ended it. With --how=direct this process becomes the command.
 *
 * With UKL_PROBE in the environment the program does nothing but exit with 42 at CPL 0 and 43 at CPL 3: whoever executes it
 * by a way that should be refused sees which it became.
 */
#include "uklcheck.h"

#include <pthread.h>
#include <sched.h>
#include <sys/time.h>

#define CANARIES 4096

static uint64_t canary[CANARIES];
static volatile sig_atomic_t alarms;
static char **command;
static pid_t target;

void beside_return(void);
void beside_store_cpl(unsigned *where);

/* What a successful jump into application text would do: come back; or say at which level it ran. */
__asm__(".text\n"
	".p2align 4\n"
	".globl beside_return\n"
	".type beside_return, @function\n"
	"beside_return:\n"
	"	ret\n"
	".size beside_return, .-beside_return\n"
	".p2align 4\n"
	".globl beside_store_cpl\n"
	".type beside_store_cpl, @function\n"
	"beside_store_cpl:\n"
	"	mov %cs, %eax\n"
	"	mov %eax, (%rdi)\n"
	"	ret\n"
	".size beside_store_cpl, .-beside_store_cpl\n");

static void on_alarm(int number)
{
	(void)number;
	ukl_check_mode();
	alarms++;
}

static void check_canary(void)
{
	for (size_t i = 0; i < CANARIES; i++)
		CHECK(canary[i] == i * 0x9e3779b97f4a7c15ULL);
	ukl_check_mode();
}

static void set_address(const char *name, const void *address)
{
	char text[32];

	snprintf(text, sizeof text, "%#lx", (unsigned long)(uintptr_t)address);
	SYS(setenv(name, text, 1));
}

static void become_command(void)
{
	execv(command[0], command);
	ukl_die(126, "beside: cannot execute %s (errno %d)", command[0], errno);
}

static void *exec_thread(void *argument)
{
	become_command();
	return argument;
}

static void start(const char *how)
{
	if (strcmp(how, "direct") == 0)
		become_command();
	if (strcmp(how, "vfork") == 0) {
		target = vfork();
		if (target == 0) {
			execv(command[0], command);
			_exit(126);
		}
		CHECK(target > 0);
		return;
	}
	target = (pid_t)SYS(fork());
	if (target > 0)
		return;
	if (strcmp(how, "thread") == 0) {
		pthread_t thread;

		CHECK_OK(pthread_create(&thread, NULL, exec_thread, NULL));
		for (;;)
			pause();
	}
	CHECK_STR(how, "fork");
	become_command();
}

int main(int argc, char **argv)
{
	struct itimerval every = {{0, 10000}, {0, 10000}};
	const char *how = "fork";
	char self[256], number[32];
	int status = 0, at = 1;

	if (getenv("UKL_PROBE"))
		_exit((ukl_cs() & 3) == 0 ? 42 : 43);
	ukl_begin("beside");
	if (at < argc && strncmp(argv[at], "--how=", 6) == 0)
		how = argv[at++] + 6;
	if (at >= argc)
		ukl_die(2, "usage: beside [--how=fork|vfork|thread|direct] COMMAND [ARGUMENT...]");
	command = argv + at;
	for (size_t i = 0; i < CANARIES; i++)
		canary[i] = i * 0x9e3779b97f4a7c15ULL;
	snprintf(number, sizeof number, "%ld", (long)getpid());
	SYS(setenv("UKL_VICTIM", number, 1));
	SYS(setenv("UKL_STUB", ukl_self(self, argv[0]), 1));
	set_address("UKL_TEXT", (const void *)(uintptr_t)&beside_return);
	set_address("UKL_CPL", (const void *)(uintptr_t)&beside_store_cpl);
	start(how);
	ukl_handle(SIGALRM, on_alarm, SA_RESTART);
	SYS(setitimer(ITIMER_REAL, &every, NULL));
	for (;;) {
		pid_t got = waitpid(target, &status, WNOHANG);

		if (got == target)
			break;
		CHECK_EQ(got, 0);
		check_canary();
		sched_yield();
		ukl_sleep_ms(2);
	}
	check_canary();
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
