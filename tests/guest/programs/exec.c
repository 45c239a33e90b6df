/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exec in all its forms: of an ordinary ring-3 program (busybox), of this very program, from threads and after vfork, and exec
 * that fails. Usage: exec [busybox]; default $UKL_BUSYBOX or /bin/busybox.
 */
#include "uklcheck.h"

#include <pthread.h>
#include <spawn.h>
#include <sys/syscall.h>

extern char **environ;

static const char *busybox = "/bin/busybox";
static char self[256];
static long changed_data = 1;

/* Collect what a child writes into the pipe. */
static void expect_output(int fd, const char *want)
{
	char text[256];
	size_t length = 0;
	ssize_t got;

	while ((got = read(fd, text + length, sizeof text - 1 - length)) > 0)
		length += (size_t)got;
	CHECK_EQ(got, 0);
	text[length] = 0;
	CHECK_STR(text, want);
	SYS(close(fd));
}

static void become_echo(const char *word)
{
	char *const arguments[] = {"busybox", "echo", "ring", "3:", (char *)word, NULL};

	execve(busybox, arguments, environ);
	_exit(120);
}

static void fork_exec(void)
{
	int ends[2];
	pid_t child;

	SYS(pipe2(ends, O_CLOEXEC));
	child = (pid_t)SYS(fork());
	if (child == 0) {
		SYS(dup2(ends[1], STDOUT_FILENO));
		become_echo("forked");
	}
	SYS(close(ends[1]));
	expect_output(ends[0], "ring 3: forked\n");
	ukl_wait_exit(child, 0);
	puts("fork + execve: ok");
}

static void vfork_exec(void)
{
	volatile long mine = 5;

	for (volatile int i = 0; i < 50; i++) {
		pid_t child = vfork();

		CHECK(child >= 0);
		if (child == 0) {
			changed_data++; /* the memory is shared until exec */
			execl(busybox, "busybox", i % 2 ? "true" : "false", (char *)NULL);
			_exit(120);
		}
		ukl_wait_exit(child, i % 2 ? 0 : 1);
		CHECK_EQ(mine, 5);
	}
	CHECK_EQ(changed_data, 51);
	puts("50 times vfork + exec: ok");
}

static void spawn(void)
{
	posix_spawn_file_actions_t actions;
	char *const arguments[] = {"busybox", "echo", "spawned", NULL};
	char *const missing[] = {"nothing", NULL};
	int ends[2];
	pid_t child;

	for (int i = 0; i < 20; i++) {
		SYS(pipe2(ends, O_CLOEXEC));
		CHECK_OK(posix_spawn_file_actions_init(&actions));
		CHECK_OK(posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO));
		CHECK_OK(posix_spawn(&child, busybox, &actions, NULL, arguments, environ));
		CHECK_OK(posix_spawn_file_actions_destroy(&actions));
		SYS(close(ends[1]));
		expect_output(ends[0], "spawned\n");
		ukl_wait_exit(child, 0);
	}
	CHECK_EQ(posix_spawn(&child, "/no/such/program", NULL, NULL, missing, environ), ENOENT);
	puts("20 times posix_spawn: ok");
}

static void failing(void)
{
	char path[256], *const arguments[] = {"x", NULL};
	char **many = calloc(70001, sizeof *many), *word = malloc(4000);
	int fd;

	CHECK(many && word);
	CHECK_FAILS(execve("/no/such/program", arguments, environ), ENOENT);
	CHECK_FAILS(execve("/", arguments, environ), EACCES);
	fd = (int)SYS(open(ukl_tmp(path, "exec"), O_WRONLY | O_CREAT | O_EXCL, 0600));
	ukl_write_all(fd, "no program\n", 11);
	CHECK_FAILS(execve(path, arguments, environ), EACCES);
	SYS(fchmod(fd, 0700));
	/* Whether a file open for writing can be executed differs between kernels; it is no program either way. */
	CHECK(execve(path, arguments, environ) == -1 && (errno == ETXTBSY || errno == ENOEXEC));
	SYS(close(fd));
	CHECK_FAILS(execve(path, arguments, environ), ENOEXEC);
	SYS(unlink(path));
	memset(word, 'w', 3999);
	word[3999] = 0;
	for (int i = 0; i < 70000; i++)
		many[i] = word;
	CHECK_FAILS(execve(busybox, many, environ), E2BIG);
	CHECK_FAILS(execve((const char *)0xffffffff81000000UL, arguments, environ), EFAULT);
	CHECK_FAILS(execve(busybox, (char *const *)0xffffffff81000000UL, environ), EFAULT);
	/* Nothing of the program was lost on the way. */
	CHECK_EQ(changed_data, 51);
	ukl_check_mode();
	free(many);
	free(word);
	puts("exec that fails leaves the program whole: ok");
}

static void by_descriptor(void)
{
	char *const arguments[] = {"busybox", "false", NULL};
	int fd = (int)SYS(open(busybox, O_RDONLY | O_CLOEXEC));
	pid_t child = (pid_t)SYS(fork());

	if (child == 0) {
		fexecve(fd, arguments, environ);
		_exit(120);
	}
	ukl_wait_exit(child, 1);
	SYS(close(fd));
	puts("fexecve: ok");
}

static void *exec_from_thread(void *argument)
{
	(void)argument;
	execl(busybox, "busybox", "true", (char *)NULL);
	_exit(120);
}

static void *sit(void *argument)
{
	for (;;)
		pause();
	return argument;
}

static void from_thread(void)
{
	for (int i = 0; i < 5; i++) {
		pid_t child = (pid_t)SYS(fork());

		if (child == 0) {
			pthread_t thread;

			for (int j = 0; j < 3; j++)
				CHECK_OK(pthread_create(&thread, NULL, sit, NULL));
			CHECK_OK(pthread_create(&thread, NULL, exec_from_thread, NULL));
			for (;;)
				pause();
		}
		ukl_wait_exit(child, 0);
	}
	puts("exec from a thread, others waiting: ok");
}

/* Runs as the program executed again: everything is as new, what should be inherited is. */
static int again(int argc, char **argv)
{
	char text[8] = "";
	size_t length = 0;

	ukl_check_mode();
	CHECK_EQ(changed_data, 1);
	CHECK_EQ(argc, 6);
	CHECK_STR(argv[2], "an argument with spaces");
	CHECK_STR(argv[3], "");
	CHECK_STR(getenv("UKL_AGAIN"), "yes");
	length = strlen(argv[4]);
	CHECK_EQ(length, 100000);
	for (size_t i = 0; i < length; i++)
		CHECK(argv[4][i] == (char)('a' + i % 26));
	CHECK_EQ(read(atoi(argv[5]), text, 5), 5);
	CHECK_STR(text, "inner");
	CHECK_FAILS(fcntl(atoi(argv[5]) + 1, F_GETFD), EBADF);
	/* Handlers are gone, what was ignored stays ignored. */
	{
		struct sigaction action;

		SYS(sigaction(SIGUSR1, NULL, &action));
		CHECK(action.sa_handler == SIG_DFL);
		SYS(sigaction(SIGUSR2, NULL, &action));
		CHECK(action.sa_handler == SIG_IGN);
	}
	return 33;
}

static void ignore_it(int number)
{
	(void)number;
}

static void itself(void)
{
	char *text = malloc(100001), number[16];
	char *const arguments[] = {self, "again", "an argument with spaces", "", text, number, NULL};
	int ends[2];

	CHECK(text != NULL);
	for (size_t i = 0; i < 100000; i++)
		text[i] = (char)('a' + i % 26);
	text[100000] = 0;
	SYS(setenv("UKL_AGAIN", "yes", 1));
	for (int i = 0; i < 10; i++) {
		pid_t child = (pid_t)SYS(fork());

		if (child == 0) {
			SYS(pipe(ends));
			ukl_write_all(ends[1], "inner", 5);
			SYS(dup2(ends[0], 100));
			SYS(dup2(ends[1], 101));
			SYS(fcntl(101, F_SETFD, FD_CLOEXEC));
			ukl_handle(SIGUSR1, ignore_it, 0);
			ukl_handle(SIGUSR2, SIG_IGN, 0);
			snprintf(number, sizeof number, "%d", 100);
			changed_data = 99;
			execve(self, arguments, environ);
			ukl_fail("execve of itself (errno %d)", errno);
		}
		ukl_wait_exit(child, 33);
	}
	{
		pid_t child;

		char *const short_arguments[] = {self, "chain", "8", NULL};

		CHECK_OK(posix_spawn(&child, self, NULL, NULL, short_arguments, environ));
		ukl_wait_exit(child, 8);
	}
	free(text);
	puts("execve of itself: fresh data, arguments, environment, descriptors, signal actions");
}

/* Executes itself, without fork, until the number is used up; then counts back through exit statuses of children. */
static int chain(int left)
{
	char number[16];

	ukl_check_mode();
	if (left > 0) {
		pid_t child = (pid_t)SYS(fork());
		int status;

		if (child == 0) {
			snprintf(number, sizeof number, "%d", left - 1);
			execl(self, self, "chain", number, (char *)NULL);
			_exit(120);
		}
		SYS(waitpid(child, &status, 0));
		CHECK(WIFEXITED(status));
		return WEXITSTATUS(status) + 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *given = getenv("UKL_BUSYBOX");

	ukl_begin("exec");
	ukl_self(self, argv[0]);
	if (argc > 1 && strcmp(argv[1], "again") == 0)
		return again(argc, argv);
	if (argc > 2 && strcmp(argv[1], "chain") == 0)
		return chain(atoi(argv[2]));
	if (argc > 1)
		busybox = argv[1];
	else if (given)
		busybox = given;
	fork_exec();
	vfork_exec();
	spawn();
	failing();
	by_descriptor();
	from_thread();
	itself();
	return ukl_end();
}
