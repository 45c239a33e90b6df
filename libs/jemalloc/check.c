/* link: -ljemalloc -pthread */
#include <jemalloc/jemalloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *work(void *nothing)
{
	void *blocks[1000];

	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 1000; i++)
			memset(blocks[i] = malloc(16 + i * 7), i, 16 + i * 7);
		for (int i = 0; i < 1000; i++)
			free(blocks[i]);
	}
	return nothing;
}

int main(void)
{
	pthread_t threads[4];
	const char *version;
	size_t size = sizeof(version), allocated, length = sizeof(allocated);

	for (int i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, work, NULL))
			return 1;
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	/* That malloc is jemalloc's: it knows how large a block it has given. */
	char *block = malloc(1000);
	if (malloc_usable_size(block) != 1024)
		return 2;
	if (mallctl("version", &version, &size, NULL, 0) || mallctl("stats.allocated", &allocated, &length, NULL, 0))
		return 3;
	printf("jemalloc %s\n", version);
	return allocated < 1000;
}
