// SPDX-License-Identifier: Apache-2.0
/*
 * provoke write WORD FILE: writes WORD to FILE, for what the kernel then says of who made the system call.
 * provoke eat: takes memory until the kernel ends it.
 *
 * For tests that look at the kernel's log; no checks of its own.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int write_word(const char *word, const char *file)
{
	int fd = open(file, O_WRONLY);

	if (fd < 0 || write(fd, word, strlen(word)) < 0) {
		perror(file);
		return 1;
	}
	return close(fd);
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
	fputs("usage: provoke write WORD FILE | provoke eat\n", stderr);
	return 99;
}
