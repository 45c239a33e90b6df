/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an operation on a disk costs, counted from beside the program that does them, one at a time:
 *
 *     watch DEVICE WARM COUNT
 *
 * After WARM reads of /dev/DEVICE it looks every four milliseconds, until it has seen enough, and prints
 *
 *     bench-cost disk program <nanoseconds of the program's processor time> <operations>
 *     bench-cost disk all <ticks in which the processor was not idle, nor here> <operations>
 *
 * A disk's answer may come before the program has gone to sleep, the more often the less of the host's time the guest gets.
 * Such an operation takes another way. So only those stretches count in which the program slept as often as the disk
 * answered. Of these, it takes the half with the most operations, COUNT at least: in others the disk was slow, and timers'
 * interrupts, which come by time, were shared by few. UKLIMG_PID says which process the program is
 * (uklimg/guest/protocol.py).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include "../bench.h"

#define PERIOD 4000000 /* nanoseconds */
/* Operations that are seen at most: so many for each that is wanted, and so many more. */
#define PATIENCE 25
#define AT_LEAST 100000

/* What there has been so far; or, in `stretches`, from one look to the next. */
struct sight {
	uint64_t answers, sleeps, program, busy;
};

static struct sight *stretches;
static unsigned kept;

static int disk, thread, timers;
static clockid_t program;

static void complain(const char *what)
{
	fprintf(stderr, "watch: %s\n", what);
	exit(1);
}

static char *contents(int fd)
{
	static char text[1 << 16];
	size_t length = 0;

	for (;;) {
		ssize_t more = pread(fd, text + length, sizeof text - 1 - length, length);

		if (more < 0)
			bench_die("the program, or what the kernel says of it");
		if (!more)
			break;
		length += more;
	}
	text[length] = '\0';
	return text;
}

static int opened(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		bench_die(path);
	return fd;
}

/* The sum of the numbers behind each `name`. */
static uint64_t number(const char *text, const char *name)
{
	const char *at = strstr(text, name);
	uint64_t sum = 0;

	if (!at)
		complain(name);
	for (; at; at = strstr(at, name)) {
		at += strlen(name);
		sum += strtoull(at + strspn(at, " \t:"), 0, 10);
	}
	return sum;
}

/* Documentation/block/stat.rst: the first and the fifth of the numbers. */
static void answered(uint64_t *reads, uint64_t *writes)
{
	unsigned long long first, fifth;

	if (sscanf(contents(disk), "%llu %*u %*u %*u %llu", &first, &fifth) != 2)
		complain("the disk's numbers cannot be read");
	*reads = first;
	*writes = fifth;
}

static uint64_t nanoseconds(clockid_t clock)
{
	struct timespec time;

	if (clock_gettime(clock, &time) != 0)
		bench_die("the program's processor time");
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Nothing but interrupts runs meanwhile: this process is a real-time one, and there is one processor. */
static struct sight look(void)
{
	uint64_t reads, writes, own, now, idle;
	struct sight seen;
	char *text;

	answered(&reads, &writes);
	seen.answers = reads + writes;
	seen.sleeps = number(contents(thread), "\nvoluntary_ctxt_switches");
	seen.program = nanoseconds(program);
	text = contents(timers);
	idle = number(text, ".idle_sleeptime") + number(text, ".iowait_sleeptime");
	own = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
	now = bench_now();
	seen.busy = now - idle - own;
	return seen;
}

/* The thread of the program that sleeps most often is the one that waits for the disk. */
static int sleeper(const char *pid)
{
	char path[64], most[64] = "";
	uint64_t sleeps = 0;
	struct dirent *entry;
	DIR *tasks;

	snprintf(path, sizeof path, "/proc/%.20s/task", pid);
	tasks = opendir(path);
	if (!tasks)
		bench_die(path);
	while ((entry = readdir(tasks))) {
		uint64_t found;
		int fd;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/%.20s/task/%.20s/status", pid, entry->d_name);
		fd = opened(path);
		found = number(contents(fd), "\nvoluntary_ctxt_switches");
		close(fd);
		if (found >= sleeps) {
			sleeps = found;
			strcpy(most, path);
		}
	}
	closedir(tasks);
	return opened(most);
}

static void pause_for(long period)
{
	struct timespec time = { .tv_nsec = period };

	nanosleep(&time, 0);
}

static int busier(const void *a, const void *b)
{
	uint64_t x = ((const struct sight *)a)->answers, y = ((const struct sight *)b)->answers;

	return (x < y) - (x > y);
}

static void keep(struct sight stretch)
{
	if (!(kept & (kept + 1))) {
		stretches = realloc(stretches, 2 * (kept + 1) * sizeof *stretches);
		if (!stretches)
			bench_die("realloc");
	}
	stretches[kept++] = stretch;
}

/* Until there are so many operations in stretches that can be used; returns how many were seen. */
static uint64_t watch(uint64_t wanted)
{
	uint64_t operations = 0, seen = 0;
	struct sight before = look(), after;

	for (; operations < wanted; before = after) {
		struct sight stretch;

		pause_for(PERIOD);
		after = look();
		stretch.answers = after.answers - before.answers;
		stretch.sleeps = after.sleeps - before.sleeps;
		stretch.program = after.program - before.program;
		stretch.busy = after.busy - before.busy;
		seen += stretch.answers;
		if (stretch.answers && stretch.sleeps >= stretch.answers) {
			operations += stretch.answers;
			keep(stretch);
		} else if (seen > AT_LEAST + PATIENCE * wanted) {
			complain("the program hardly ever waits for the disk: the host does not let the guest run");
		}
	}
	return seen;
}

int main(int argc, char **argv)
{
	const struct sched_param first = { .sched_priority = 1 };
	uint64_t reads = 0, writes, warm, wanted, seen, operations = 0, cpu = 0, all = 0;
	const char *pid = getenv("UKLIMG_PID");
	char path[64];

	if (argc != 4 || !pid || clock_getcpuclockid(atoi(pid), &program) != 0) {
		fprintf(stderr, "usage: UKLIMG_PID=PID watch DEVICE WARM COUNT\n");
		return 2;
	}
	warm = strtoull(argv[2], 0, 10);
	wanted = strtoull(argv[3], 0, 10);
	bench_start();
	if (sched_setscheduler(0, SCHED_FIFO, &first) != 0)
		bench_die("sched_setscheduler");
	snprintf(path, sizeof path, "/sys/block/%.20s/stat", argv[1]);
	disk = opened(path);
	timers = opened("/proc/timer_list");
	while (reads < warm) {
		pause_for(PERIOD);
		nanoseconds(program); /* it still runs */
		answered(&reads, &writes);
	}
	thread = sleeper(pid);
	seen = watch(2 * wanted);
	qsort(stretches, kept, sizeof *stretches, busier);
	for (unsigned n = 0; operations < wanted; n++) {
		operations += stretches[n].answers;
		cpu += stretches[n].program;
		all += stretches[n].busy;
	}
	printf("bench-cost disk program %llu %llu\n", (unsigned long long)cpu, (unsigned long long)operations);
	printf("bench-cost disk all %llu %llu\n", (unsigned long long)all, (unsigned long long)operations);
	bench_fact("operations-seen", seen);
	bench_end();
	return 0;
}
