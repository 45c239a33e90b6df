/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How workloads measure and report. What they print is read by uklimg/bench/printed.py:
 *
 *     bench <case> <size> <minimum> <median> <90th> <99th> <99.9th percentile> <samples>
 *     bench-fact <name> <number>
 *
 * A sample is the ticks of the time stamp counter from before an operation until after it, less what reading the counter
 * takes. Under QEMU's `-icount shift=0` a tick is one instruction; elsewhere the fact `tsc-khz` says how long one is.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t bench_reading, bench_begin;
static struct timespec bench_clock;

static void bench_die(const char *what)
{
	perror(what);
	exit(1);
}

/* Nothing moves across it: every instruction of the operation lies between the two readings. */
static inline uint64_t bench_now(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static int bench_ascending(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void __attribute__((unused)) bench_report(const char *name, unsigned long size, uint64_t *sample, unsigned count, uint64_t off)
{
	static const double at[] = { 0, 0.5, 0.9, 0.99, 0.999 };

	qsort(sample, count, sizeof *sample, bench_ascending);
	printf("bench %s %lu", name, size);
	for (unsigned n = 0; n < sizeof at / sizeof *at; n++) {
		uint64_t value = sample[(unsigned)(at[n] * (count - 1) + 0.5)];

		printf(" %llu", (unsigned long long)(value > off ? value - off : 0));
	}
	printf(" %u\n", count);
}

static void bench_fact(const char *name, unsigned long long value)
{
	printf("bench-fact %s %llu\n", name, value);
}

/* The reader checks the method with these: where it runs, and what a thousand instructions are. */
static void bench_start(void)
{
	unsigned cs;
	uint64_t best = ~0ull;

	__asm__ volatile("mov %%cs, %0" : "=r"(cs));
	bench_fact("cpl", cs & 3);
	bench_reading = ~0ull;
	for (int n = 0; n < 1000; n++) {
		uint64_t begin = bench_now(), ticks = bench_now() - begin;

		bench_reading = ticks < bench_reading ? ticks : bench_reading;
	}
	for (int n = 0; n < 100; n++) {
		uint64_t begin = bench_now(), ticks;

		__asm__ volatile(".rept 1000\n\tnop\n\t.endr");
		ticks = bench_now() - begin - bench_reading;
		best = ticks < best ? ticks : best;
	}
	bench_fact("nops1000", best);
	clock_gettime(CLOCK_MONOTONIC, &bench_clock);
	bench_begin = bench_now();
}

static void bench_end(void)
{
	uint64_t ticks = bench_now() - bench_begin;
	struct timespec clock;
	double seconds;

	clock_gettime(CLOCK_MONOTONIC, &clock);
	seconds = (clock.tv_sec - bench_clock.tv_sec) + (clock.tv_nsec - bench_clock.tv_nsec) / 1e9;
	bench_fact("tsc-khz", seconds > 0 ? (unsigned long long)(ticks / seconds / 1000 + 0.5) : 0);
}

#endif
