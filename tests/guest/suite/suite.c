/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All guest programs in one executable, since a kernel holds one application: main of programs/NAME.c becomes
 * main_NAME, and UKL_PROGRAM in the environment says which to be. argv stays the program's own.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAM(name) int main_##name(int argc, char **argv);
#include "suite.inc"
#undef PROGRAM

static const struct {
	const char *name;
	int (*main)(int argc, char **argv);
} programs[] = {
#define PROGRAM(name) {#name, main_##name},
#include "suite.inc"
};

/* With it the code fills a page of 2 MiB, which the kernel maps as one. */
__asm__(".text\n.fill 1 << 19, 1, 0xcc\n");

int main(int argc, char **argv)
{
	const char *wanted = getenv("UKL_PROGRAM");

	for (size_t i = 0; wanted && i < sizeof programs / sizeof programs[0]; i++)
		if (!strcmp(programs[i].name, wanted))
			return programs[i].main(argc, argv);
	fprintf(stderr, "suite: UKL_PROGRAM names no program: %s\n", wanted ? wanted : "(unset)");
	return 2;
}
