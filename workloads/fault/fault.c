/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What page faults cost (the paper's table 2): a byte is written to the first of each of 1 to 10 fresh pages.
 *
 *     fault SAMPLES
 *
 * Each sample is of all pages of one mapping. `clear` is what clearing that many pages counts as here, which is part of
 * every fault and has nothing to do with how the kernel is entered and left. A page beside the mapping is in use all the
 * time, so that page tables are neither made nor freed: whether they are would depend on what else is mapped nearby.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../bench.h"

#define PAGE 4096
#define MOST 10
#define TABLE (2ul << 20) /* what one page table maps */

int main(int argc, char **argv)
{
	unsigned samples = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
	uint64_t *sample = calloc(samples ? samples : 1, sizeof *sample);
	char *around = mmap(NULL, 2 * TABLE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *place = (char *)(((uintptr_t)around + TABLE - 1) & ~(TABLE - 1));
	static char clean[MOST * PAGE] __attribute__((aligned(PAGE)));

	if (!samples || !sample || around == MAP_FAILED)
		bench_die("memory");
	/* A kernel without huge pages does not know the word. */
	if (madvise(around, 2 * TABLE, MADV_NOHUGEPAGE) != 0 && errno != EINVAL)
		bench_die("madvise");
	memset(sample, 1, samples * sizeof *sample);
	*(volatile char *)place = 1;
	place += TABLE / 2;
	munmap(place, MOST * PAGE);
	memset(clean, 1, sizeof clean);
	bench_start();
	for (unsigned pages = 1; pages <= MOST; pages++) {
		for (unsigned n = 0; n < samples; n++) {
			int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
			volatile char *memory = mmap(place, MOST * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
			uint64_t begin;

			if (memory == MAP_FAILED)
				bench_die("mmap");
			begin = bench_now();
			for (unsigned page = 0; page < pages; page++)
				memory[page * PAGE] = 1;
			sample[n] = bench_now() - begin;
			munmap((void *)memory, MOST * PAGE);
		}
		bench_report("fault", pages, sample, samples, bench_reading);
	}
	for (unsigned n = 0; n < samples; n++) {
		void *to = clean;
		long count = PAGE;
		uint64_t begin = bench_now();

		__asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(0) : "memory");
		sample[n] = bench_now() - begin;
	}
	bench_report("clear", 1, sample, samples, bench_reading);
	bench_end();
	return 0;
}
