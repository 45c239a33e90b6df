// SPDX-License-Identifier: Apache-2.0
/*
 * Loads a shared object that is there, /lib/shared.so. An ordinary program runs its function; at CPL 0 its code could
 * not run, so that dlopen must fail with a message each time it is asked.
 */
#include <dlfcn.h>
#include <stdio.h>
#include "uklcheck.h"

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "/lib/shared.so";

	ukl_begin("shared");
	for (int i = 0; i < 3; i++) {
		void *object = dlopen(path, RTLD_NOW);

		if (!object) {
			printf("dlopen: %s\n", dlerror());
			continue;
		}
		int (*answer)(void) = (int (*)(void))dlsym(object, "answer");

		CHECK(answer != NULL);
		printf("answer: %d\n", answer());
		CHECK_EQ(dlclose(object), 0);
	}
	return ukl_end();
}
