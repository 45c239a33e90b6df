/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long it took to main(), and how much memory there is. The time stamp counter began with the machine: firmware is
 * part of it.
 */
#define _GNU_SOURCE
#include <sys/sysinfo.h>

#include "../bench.h"

int main(void)
{
	uint64_t ticks = bench_now();
	struct sysinfo info;

	if (sysinfo(&info) != 0)
		bench_die("sysinfo");
	bench_start();
	bench_fact("main-ticks", ticks);
	bench_fact("memory-total", (unsigned long long)info.totalram * info.mem_unit);
	bench_fact("memory-free", (unsigned long long)info.freeram * info.mem_unit);
	bench_end();
	return 0;
}
