// SPDX-License-Identifier: Apache-2.0
/*
 * provoke write WORD FILE: writes WORD to FILE, for what the kernel then says of who made the system call.
 * provoke eat: takes memory until the kernel ends it.
 * provoke crash: writes to address 0.
 * provoke spin SECONDS: computes so long.
 * provoke tick: says "ticks" and calls provoke_tick() until it is ended, with a pause between.
 *
 * For tests that look at the kernel's log; no checks of its own.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Functions of their own, with callers that one can know again. */
#define FRAME __attribute__((noinline, noclone))

static volatile long provoke_count;

FRAME static long provoke_inner(int fd, const char *word)
{
	long done = write(fd, word, strlen(word));

	provoke_count++;
	return done;
}

/* With a frame pointer and a stack of a size that only the run time knows. */
FRAME static long provoke_outer(int fd, const char *word)
{
	char copy[strlen(word) + 1];

	strcpy(copy, word);
	return provoke_inner(fd, copy) + provoke_count;
}

/* With a stack that is aligned anew. */
FRAME static long provoke_aligned(int fd, const char *word)
{
	char copy[64] __attribute__((aligned(64)));

	snprintf(copy, sizeof copy, "%s", word);
	return provoke_outer(fd, copy) + provoke_count;
}

static int write_word(const char *word, const char *file)
{
	int fd = open(file, O_WRONLY);

	if (fd < 0 || provoke_aligned(fd, word) < 0) {
		perror(file);
		return 1;
	}
	return close(fd);
}

FRAME static int provoke_crash(volatile int *where)
{
	*where = 1;
	return *where;
}

FRAME static void provoke_busy(void)
{
	for (int i = 0; i < 1000000; i++)
		provoke_count += i;
}

static int spin(time_t seconds)
{
	for (time_t end = time(NULL) + seconds; time(NULL) < end;)
		provoke_busy();
	return 0;
}

FRAME static void provoke_tick(long number)
{
	const struct timespec pause = {0, 10000000};

	provoke_count = number;
	nanosleep(&pause, NULL);
}

static int tick(void)
{
	puts("ticks");
	fflush(stdout);
	while (provoke_count >= 0)
		provoke_tick(provoke_count + 1);
	return 0;
}

static int eat(void)
{
	const size_t piece = 1 << 20;
	char *memory;

	while ((memory = malloc(piece)))
		memset(memory, 1, piece);
	fputs("provoke: malloc has no more, and the kernel did not mind\n", stderr);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "write"))
		return write_word(argv[2], argv[3]);
	if (argc == 2 && !strcmp(argv[1], "eat"))
		return eat();
	if (argc == 2 && !strcmp(argv[1], "crash"))
		return provoke_crash(NULL);
	if (argc == 3 && !strcmp(argv[1], "spin"))
		return spin(atoi(argv[2]));
	if (argc == 2 && !strcmp(argv[1], "tick"))
		return tick();
	fputs("usage: provoke write WORD FILE | eat | crash | spin SECONDS | tick\n", stderr);
	return 99;
}
