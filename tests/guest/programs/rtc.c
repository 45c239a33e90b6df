/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that run to completion: others that want the processor wait until such a thread blocks. Signals come all the
 * same, and a thread that never stops is not the end. In ring 3 nothing keeps others waiting.
 */
#include "uklcheck.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <ukl.h>

#define SPIN_MS 150
/* Others get a twentieth of each second, if need be, and a second is soon over on a machine that others slow down. */
#define ATTEMPTS 20

static atomic_ulong steps;
static atomic_int stop, woken;
static volatile sig_atomic_t signals;

static int to_completion(int on)
{
	int result = ukl_run_to_completion(on);

	if (result == -1)
		CHECK_EQ(errno, ENOSYS);
	CHECK_EQ(result == 0, ukl_linked());
	return result == 0;
}

static void spin(long ms)
{
	long long end = ukl_now_ms() + ms;

	while (ukl_now_ms() < end)
		;
}

static void *walker(void *argument UKL_UNUSED)
{
	to_completion(0);
	while (!stop)
		steps++;
	return NULL;
}

static void *sleeper(void *argument)
{
	char byte;

	to_completion(0);
	CHECK_EQ(read(*(int *)argument, &byte, 1), 1);
	woken = 1;
	return NULL;
}

/* What does not block does not let others run, whether here or in the kernel. */
static void busy_work(void)
{
	int fd = (int)SYS(open("/dev/zero", O_RDONLY | O_CLOEXEC));
	static char block[65536];
	char *pages;

	spin(SPIN_MS);
	for (int i = 0; i < 10; i++) {
		CHECK_EQ(read(fd, block, sizeof block), (ssize_t)sizeof block);
		pages = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		CHECK(pages != MAP_FAILED);
		memset(pages, 1, 1 << 20);
		SYS(munmap(pages, 1 << 20));
	}
	SYS(close(fd));
}

static void others_wait(void)
{
	pthread_t other, asleep;
	int pipes[2], alone = 0, waited = 0;
	unsigned long before;

	SYS(pipe(pipes));
	to_completion(0);
	CHECK_OK(pthread_create(&other, NULL, walker, NULL));
	CHECK_OK(pthread_create(&asleep, NULL, sleeper, &pipes[0]));
	while (!steps)
		sched_yield();
	ukl_sleep_ms(50);

	for (int i = 0; i < ATTEMPTS; i++) {
		alone = to_completion(1);
		before = steps;
		busy_work();
		if (!i)
			CHECK_EQ(write(pipes[1], "w", 1), 1);
		spin(SPIN_MS);
		if (!alone) {
			CHECK(steps != before);
			break;
		}
		if (steps == before && (i || !woken)) {
			waited++;
			break;
		}
		to_completion(0);
		ukl_sleep_ms(100);
	}
	CHECK_EQ(waited, alone);
	/* Blocking lets them. */
	ukl_sleep_ms(50);
	CHECK(steps != before);
	CHECK_OK(pthread_join(asleep, NULL));
	CHECK_EQ(woken, 1);
	/* Off again: shared as ever. */
	to_completion(0);
	before = steps;
	spin(SPIN_MS);
	CHECK(steps != before);
	stop = 1;
	CHECK_OK(pthread_join(other, NULL));
	SYS(close(pipes[0]));
	SYS(close(pipes[1]));
	puts("others wait: ok");
}

static void count(int number UKL_UNUSED)
{
	signals++;
}

static void signals_come(void)
{
	struct itimerval often = {{0, 5000}, {0, 5000}}, never = {{0, 0}, {0, 0}};

	ukl_handle(SIGALRM, count, SA_RESTART);
	to_completion(1);
	SYS(setitimer(ITIMER_REAL, &often, NULL));
	while (signals < 5)
		;
	SYS(setitimer(ITIMER_REAL, &never, NULL));
	to_completion(0);
	puts("signals come: ok");
}

/* A child that never stops: this process, on the same processor, gets to run and to kill it. */
static void forever(void)
{
	pid_t child = (pid_t)SYS(fork());

	if (!child) {
		to_completion(1);
		for (;;)
			;
	}
	ukl_sleep_ms(100);
	SYS(kill(child, SIGKILL));
	ukl_wait_signal(child, SIGKILL);
	puts("a thread that never stops is killed: ok");
}

/* Children and threads inherit it, programs of ring 3 do not; a policy of one's own stays. */
static void *policy_of_thread(void *argument UKL_UNUSED)
{
	return (void *)(long)sched_getscheduler(0);
}

static void inherited(void)
{
	struct sched_param param = {.sched_priority = 3};
	int on = to_completion(1), status;
	pthread_t thread;
	void *policy;
	pid_t child;

	CHECK_OK(pthread_create(&thread, NULL, policy_of_thread, NULL));
	CHECK_OK(pthread_join(thread, &policy));
	CHECK_EQ((long)policy, on ? SCHED_FIFO : SCHED_OTHER);
	child = (pid_t)SYS(fork());
	if (!child) {
		const char *busybox = getenv("UKL_BUSYBOX") ? getenv("UKL_BUSYBOX") : "/bin/busybox";

		CHECK_EQ(sched_getscheduler(0), on ? SCHED_FIFO : SCHED_OTHER);
		/* The 41st field is the policy; SCHED_OTHER is 0. */
		execl(busybox, "sh", "-c", "read line </proc/self/stat; set -- $line; shift 40; exit $1", NULL);
		_exit(UKL_EXIT_CHECK);
	}
	SYS(waitpid(child, &status, 0));
	CHECK_EQ(status, 0);
	to_completion(0);
	CHECK_EQ(sched_getscheduler(0), SCHED_OTHER);
	if (sched_setscheduler(0, SCHED_RR, &param) == 0) {
		to_completion(1);
		CHECK_EQ(sched_getscheduler(0), SCHED_RR);
		to_completion(0);
		CHECK_EQ(sched_getscheduler(0), SCHED_RR);
		param.sched_priority = 0;
		SYS(sched_setscheduler(0, SCHED_OTHER, &param));
	}
	puts("inherited, and not: ok");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	cpu_set_t first;

	ukl_begin("rtc");
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	SYS(sched_setaffinity(0, sizeof first, &first));
	others_wait();
	signals_come();
	forever();
	inherited();
	return ukl_end();
}
