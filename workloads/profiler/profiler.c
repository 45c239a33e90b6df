/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records what runs in the guest, beside the image's program:
 *
 *     profiler SECONDS CLIENT-ARGUMENT... -- PERF-RECORD...  -- PERF-SCRIPT...
 *
 * Starts PERF-RECORD and waits until it has begun to write (its -o FILE); lets the client /bench/client run to its end if there are arguments for it; else waits SECONDS, or
 * until the program (UKLIMG_PID) has ended, if that is sooner. Then it ends the recording (SIGINT) and runs PERF-SCRIPT
 * with its output in /profile/script. What the two say goes to /profile/log.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "profiler: %s: %s\n", what, strerror(errno));
	exit(1);
}

static pid_t start(char **argv, const char *output, const char *errors)
{
	pid_t child = fork();

	if (child < 0)
		die("fork");
	if (child == 0) {
		int out = open(output, O_WRONLY | O_CREAT | O_APPEND, 0644);
		int err = open(errors, O_WRONLY | O_CREAT | O_APPEND, 0644);

		if (out < 0 || err < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
			die(output);
		execv(argv[0], argv);
		die(argv[0]);
	}
	return child;
}

static int end_of(pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Before the file is there perf reads its libraries and what runs already; then it records. */
static void wait_for(const char *recording, pid_t perf)
{
	struct stat found;

	for (int n = 0; n < 6000; n++) {
		if (stat(recording, &found) == 0 && found.st_size > 0) {
			usleep(500000);
			return;
		}
		if (waitpid(perf, NULL, WNOHANG) != 0)
			break;
		usleep(10000);
	}
	fprintf(stderr, "profiler: nothing is recorded\n");
	exit(1);
}

int main(int argc, char **argv)
{
	char *clients[64] = { "/bench/client" }, **record = NULL, **script = NULL;
	const char *program = getenv("UKLIMG_PID"), *recording = NULL;
	int arguments = 1, status;
	pid_t perf;

	for (int n = 2; n < argc; n++) {
		if (strcmp(argv[n], "--") == 0) {
			argv[n] = NULL;
			*(record ? &script : &record) = &argv[n + 1];
		} else if (record && !script && strcmp(argv[n], "-o") == 0) {
			recording = argv[n + 1];
		} else if (!record && arguments < 63) {
			clients[arguments++] = argv[n];
		}
	}
	if (!program || !script || !recording) {
		fprintf(stderr, "usage: UKLIMG_PID=PID profiler SECONDS CLIENT... -- RECORD... -- SCRIPT...\n");
		return 2;
	}
	perf = start(record, "/profile/log", "/profile/log");
	wait_for(recording, perf);
	if (arguments > 1) {
		status = end_of(start(clients, "/profile/client", "/profile/log"));
		if (status) {
			fprintf(stderr, "profiler: the client ended with status %d\n", status);
			return 1;
		}
	} else {
		for (int n = atoi(argv[1]) * 10; n > 0 && kill(atoi(program), 0) == 0; n--)
			usleep(100000);
	}
	kill(perf, SIGINT);
	status = end_of(perf);
	/* perf ends by the signal that ended the recording, or as if nothing had been. */
	if (status != 0 && status != 128 + SIGINT) {
		fprintf(stderr, "profiler: %s ended with status %d\n", record[0], status);
		return 1;
	}
	status = end_of(start(script, "/profile/script", "/profile/log"));
	if (status)
		fprintf(stderr, "profiler: %s ended with status %d\n", script[0], status);
	return status != 0;
}
