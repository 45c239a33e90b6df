/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads on however many CPUs there are: mutexes, condition variables, barriers, read-write locks, semaphores, thread-local
 * storage, cancellation, signals to threads, thread churn, robust and priority-inheriting mutexes.
 */
#include "uklcheck.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <ukl.h>

#define THREADS 8
#define ROUNDS 20000

struct crew {
	pthread_t thread[THREADS];
};

static void crew_start(struct crew *crew, void *(*run)(void *))
{
	for (long i = 0; i < THREADS; i++)
		CHECK_OK(pthread_create(&crew->thread[i], NULL, run, (void *)i));
}

static long crew_join(struct crew *crew)
{
	long sum = 0;

	for (int i = 0; i < THREADS; i++) {
		void *result = NULL;

		CHECK_OK(pthread_join(crew->thread[i], &result));
		sum += (long)result;
	}
	return sum;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_spinlock_t spin;
static long counter, spun;

static void *count(void *argument)
{
	(void)argument;
	ukl_check_mode();
	for (int i = 0; i < ROUNDS; i++) {
		pthread_mutex_lock(&lock);
		counter++;
		pthread_mutex_unlock(&lock);
		if (i % 64 == 0) {
			/* Held across a system call: the others really sleep in futex(2). */
			pthread_mutex_lock(&lock);
			sched_yield();
			counter++;
			pthread_mutex_unlock(&lock);
			pthread_spin_lock(&spin);
			spun++;
			pthread_spin_unlock(&spin);
		}
	}
	return (void *)1;
}

static void mutexes(void)
{
	struct crew crew;

	CHECK_OK(pthread_spin_init(&spin, PTHREAD_PROCESS_PRIVATE));
	crew_start(&crew, count);
	CHECK_EQ(crew_join(&crew), THREADS);
	CHECK_EQ(counter, THREADS * (ROUNDS + (ROUNDS + 63) / 64));
	CHECK_EQ(spun, THREADS * ((ROUNDS + 63) / 64));
	printf("mutex: %ld increments by %d threads\n", counter, THREADS);
}

#define QUEUE 16
#define ITEMS 5000

static struct {
	pthread_mutex_t lock;
	pthread_cond_t filled, emptied;
	long item[QUEUE];
	int head, used, producers;
} queue = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, {0}, 0, 0, THREADS / 2};

static void *produce_or_consume(void *argument)
{
	long self = (long)argument, sum = 0;

	if (self < THREADS / 2) {
		for (long i = 1; i <= ITEMS; i++) {
			pthread_mutex_lock(&queue.lock);
			while (queue.used == QUEUE)
				pthread_cond_wait(&queue.emptied, &queue.lock);
			queue.item[(queue.head + queue.used++) % QUEUE] = i;
			pthread_cond_signal(&queue.filled);
			pthread_mutex_unlock(&queue.lock);
		}
		pthread_mutex_lock(&queue.lock);
		queue.producers--;
		pthread_cond_broadcast(&queue.filled);
		pthread_mutex_unlock(&queue.lock);
		return NULL;
	}
	for (;;) {
		pthread_mutex_lock(&queue.lock);
		while (queue.used == 0 && queue.producers)
			pthread_cond_wait(&queue.filled, &queue.lock);
		if (queue.used == 0)
			break;
		sum += queue.item[queue.head];
		queue.head = (queue.head + 1) % QUEUE;
		queue.used--;
		pthread_cond_signal(&queue.emptied);
		pthread_mutex_unlock(&queue.lock);
	}
	pthread_mutex_unlock(&queue.lock);
	return (void *)sum;
}

static void conditions(void)
{
	struct crew crew;
	struct timespec soon;
	long sum;

	crew_start(&crew, produce_or_consume);
	sum = crew_join(&crew);
	CHECK_EQ(sum, THREADS / 2 * (long)ITEMS * (ITEMS + 1) / 2);
	printf("condition variables: %d items, sum %ld\n", THREADS / 2 * ITEMS, sum);

	SYS(clock_gettime(CLOCK_REALTIME, &soon));
	soon.tv_nsec += 20000000;
	soon.tv_sec += soon.tv_nsec / 1000000000;
	soon.tv_nsec %= 1000000000;
	CHECK_OK(pthread_mutex_lock(&lock));
	CHECK_EQ(pthread_cond_timedwait(&queue.filled, &lock, &soon), ETIMEDOUT);
	CHECK_OK(pthread_mutex_unlock(&lock));
}

static pthread_barrier_t barrier;
static long stage[THREADS];

static void *march(void *argument)
{
	long self = (long)argument, serial = 0;

	for (long round = 1; round <= 500; round++) {
		int got;

		stage[self] = round;
		got = pthread_barrier_wait(&barrier);
		serial += got == PTHREAD_BARRIER_SERIAL_THREAD;
		for (int i = 0; i < THREADS; i++)
			CHECK(__atomic_load_n(&stage[i], __ATOMIC_SEQ_CST) == round);
		pthread_barrier_wait(&barrier);
	}
	return (void *)serial;
}

static void barriers(void)
{
	struct crew crew;

	CHECK_OK(pthread_barrier_init(&barrier, NULL, THREADS));
	crew_start(&crew, march);
	CHECK_EQ(crew_join(&crew), 500);
	CHECK_OK(pthread_barrier_destroy(&barrier));
	puts("barriers: 1000 crossings");
}

static pthread_rwlock_t shared_lock = PTHREAD_RWLOCK_INITIALIZER;
static sem_t tokens;
static long pair[2], inside;

static void *read_write(void *argument)
{
	long self = (long)argument;

	for (int i = 0; i < 2000; i++) {
		if ((i + self) % 8 == 0) {
			pthread_rwlock_wrlock(&shared_lock);
			pair[0]++;
			if (i % 16 == 0)
				sched_yield();
			pair[1]++;
			pthread_rwlock_unlock(&shared_lock);
		} else {
			pthread_rwlock_rdlock(&shared_lock);
			CHECK_EQ(pair[0], pair[1]);
			pthread_rwlock_unlock(&shared_lock);
		}
		CHECK_OK(sem_wait(&tokens));
		CHECK(__atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST) <= 3);
		__atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
		CHECK_OK(sem_post(&tokens));
	}
	return NULL;
}

static void locks_and_semaphores(void)
{
	struct crew crew;

	CHECK_OK(sem_init(&tokens, 0, 3));
	crew_start(&crew, read_write);
	crew_join(&crew);
	CHECK_EQ(pair[0], THREADS * 2000 / 8);
	CHECK_FAILS(sem_trywait(&tokens) == 0 && sem_trywait(&tokens) == 0 && sem_trywait(&tokens) == 0 ? sem_trywait(&tokens) : 0,
		    EAGAIN);
	puts("read-write locks, semaphores: ok");
}

/* TLS: initialised, zero, aligned, large; keys with destructors. */
static __thread long local_data = 0x1234;
static __thread long local_bss;
static __thread char local_large[20000];
static __thread long local_aligned __attribute__((aligned(64))) = 7;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static long destroyed, initialised;

static void destroy(void *value)
{
	__atomic_add_fetch(&destroyed, (long)value, __ATOMIC_SEQ_CST);
}

static void initialise(void)
{
	initialised++;
	CHECK_OK(pthread_key_create(&key, destroy));
}

static void *use_locals(void *argument)
{
	long self = (long)argument;

	CHECK_OK(pthread_once(&once, initialise));
	CHECK_EQ(local_data, 0x1234);
	CHECK_EQ(local_bss, 0);
	CHECK_EQ(local_aligned, 7);
	CHECK((uintptr_t)&local_aligned % 64 == 0);
	CHECK_OK(pthread_setspecific(key, (void *)(self + 1)));
	for (int i = 0; i < 300; i++) {
		local_data += self;
		local_bss -= self;
		memset(local_large, (int)self, sizeof local_large);
		errno = (int)self;
		sched_yield();
		CHECK_EQ(errno, self);
		CHECK(local_large[0] == self && local_large[sizeof local_large - 1] == self);
		CHECK((long)pthread_getspecific(key) == self + 1);
	}
	CHECK_EQ(local_data, 0x1234 + 300 * self);
	CHECK_EQ(local_bss, -300 * self);
	return NULL;
}

static void thread_locals(void)
{
	struct crew crew;

	crew_start(&crew, use_locals);
	crew_join(&crew);
	CHECK_EQ(initialised, 1);
	CHECK_EQ(destroyed, THREADS * (THREADS + 1) / 2);
	CHECK_EQ(local_data, 0x1234);
	puts("thread-local storage and keys: ok");
}

static long cleaned;
static int quiet_pipe[2];

static void clean(void *weight)
{
	__atomic_add_fetch(&cleaned, (long)weight, __ATOMIC_SEQ_CST);
}

static void release(void *held)
{
	pthread_mutex_unlock(held);
}

static void *wait_for_cancel(void *argument)
{
	long how = (long)argument;
	char byte;
	int old;

	pthread_cleanup_push(clean, (void *)1);
	pthread_cleanup_push(clean, (void *)100);
	switch (how % 4) {
	case 0:
		(void)!read(quiet_pipe[0], &byte, 1);
		break;
	case 1:
		for (;;)
			sleep(1000);
	case 2:
		pthread_mutex_lock(&lock);
		pthread_cleanup_push(release, &lock);
		for (;;)
			pthread_cond_wait(&queue.filled, &lock);
		pthread_cleanup_pop(1);
		break;
	default:
		/*
		 * No system call at all: only an asynchronous cancellation ends it, by a thread that must get a
		 * processor, so this one must not keep it.
		 */
		(void)ukl_run_to_completion(0);
		pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
		for (;;)
			__asm__ volatile("pause");
	}
	pthread_cleanup_pop(1);
	pthread_cleanup_pop(1);
	return NULL;
}

static void *immune(void *argument)
{
	(void)argument;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	ukl_sleep_ms(30);
	return (void *)77;
}

static void cancellation(void)
{
	struct crew crew;
	pthread_t thread;
	void *result;

	SYS(pipe(quiet_pipe));
	crew_start(&crew, wait_for_cancel);
	ukl_sleep_ms(20);
	for (int i = 0; i < THREADS; i++)
		CHECK_OK(pthread_cancel(crew.thread[i]));
	CHECK_EQ(crew_join(&crew), THREADS * (long)PTHREAD_CANCELED);
	CHECK_EQ(cleaned, THREADS * 101);
	CHECK_OK(pthread_mutex_trylock(&lock));
	CHECK_OK(pthread_mutex_unlock(&lock));

	CHECK_OK(pthread_create(&thread, NULL, immune, NULL));
	CHECK_OK(pthread_cancel(thread));
	CHECK_OK(pthread_join(thread, &result));
	CHECK_EQ((long)result, 77);
	puts("cancellation: in read, sleep, condition wait, a loop; not when disabled");
}

static __thread volatile sig_atomic_t received;
static long total_received;

static void on_usr1(int number)
{
	(void)number;
	ukl_check_mode();
	received++;
}

static void *take_signals(void *argument)
{
	sigset_t none;

	(void)argument;
	sigemptyset(&none);
	/* Blocked except within sigsuspend, so that none comes between the test and the wait. */
	while (received < 100) {
		CHECK_FAILS(sigsuspend(&none), EINTR);
		__atomic_add_fetch(&total_received, 1, __ATOMIC_SEQ_CST);
	}
	return (void *)(long)received;
}

static void directed_signals(void)
{
	struct crew crew;
	sigset_t set, old;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	ukl_handle(SIGUSR1, on_usr1, 0);
	CHECK_OK(pthread_sigmask(SIG_BLOCK, &set, &old));
	crew_start(&crew, take_signals);
	for (long sent = 1; sent <= 100; sent++) {
		for (int i = 0; i < THREADS; i++)
			CHECK_OK(pthread_kill(crew.thread[i], SIGUSR1));
		while (__atomic_load_n(&total_received, __ATOMIC_SEQ_CST) < sent * THREADS)
			sched_yield();
	}
	CHECK_EQ(crew_join(&crew), 100 * THREADS);
	CHECK_OK(pthread_sigmask(SIG_SETMASK, &old, NULL));
	puts("signals to threads: 800 delivered");
}

static void *nothing(void *argument)
{
	ukl_check_mode();
	return argument;
}

static void *leave_early(void *argument)
{
	pthread_exit(argument);
}

static void churn(void)
{
	pthread_attr_t attributes;
	pthread_t thread;
	void *result;

	for (long i = 0; i < 500; i++) {
		CHECK_OK(pthread_create(&thread, NULL, i % 2 ? nothing : leave_early, (void *)i));
		CHECK_OK(pthread_join(thread, &result));
		CHECK_EQ((long)result, i);
	}
	CHECK_OK(pthread_attr_init(&attributes));
	CHECK_OK(pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED));
	CHECK_OK(pthread_attr_setstacksize(&attributes, 262144));
	for (int i = 0; i < 200; i++) {
		int error = pthread_create(&thread, &attributes, nothing, NULL);

		if (error == EAGAIN) { /* the detached ones are not gone yet */
			ukl_sleep_ms(5);
			continue;
		}
		CHECK_EQ(error, 0);
	}
	CHECK_OK(pthread_attr_destroy(&attributes));
	puts("700 threads came and went");
}

static pthread_mutex_t robust, inheriting;

static void *die_holding(void *argument)
{
	CHECK_OK(pthread_mutex_lock(argument));
	return NULL;
}

static long inherited;

static void *count_inheriting(void *argument)
{
	(void)argument;
	for (int i = 0; i < 1000; i++) {
		CHECK_OK(pthread_mutex_lock(&inheriting));
		inherited++;
		if (i % 32 == 0)
			sched_yield();
		CHECK_OK(pthread_mutex_unlock(&inheriting));
	}
	return NULL;
}

static void special_mutexes(void)
{
	pthread_mutexattr_t attributes;
	struct crew crew;
	pthread_t thread;

	CHECK_OK(pthread_mutexattr_init(&attributes));
	CHECK_OK(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
	CHECK_OK(pthread_mutex_init(&robust, &attributes));
	CHECK_OK(pthread_create(&thread, NULL, die_holding, &robust));
	CHECK_OK(pthread_join(thread, NULL));
	CHECK_EQ(pthread_mutex_lock(&robust), EOWNERDEAD);
	CHECK_OK(pthread_mutex_consistent(&robust));
	CHECK_OK(pthread_mutex_unlock(&robust));
	CHECK_OK(pthread_mutex_destroy(&robust));

	CHECK_OK(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_STALLED));
	CHECK_OK(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT));
	CHECK_OK(pthread_mutex_init(&inheriting, &attributes));
	crew_start(&crew, count_inheriting);
	crew_join(&crew);
	CHECK_EQ(inherited, THREADS * 1000);
	CHECK_OK(pthread_mutex_destroy(&inheriting));

	CHECK_OK(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_NONE));
	CHECK_OK(pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK));
	CHECK_OK(pthread_mutex_init(&robust, &attributes));
	CHECK_OK(pthread_mutex_lock(&robust));
	CHECK_EQ(pthread_mutex_lock(&robust), EDEADLK);
	CHECK_OK(pthread_mutex_unlock(&robust));
	CHECK_EQ(pthread_mutex_unlock(&robust), EPERM);
	CHECK_OK(pthread_mutexattr_destroy(&attributes));
	puts("robust, priority-inheriting and checking mutexes: ok");
}

/* futex(2) itself, on static data: ping-pong between two threads, wake counts, timeouts. */
static uint32_t ball;

static long futex(uint32_t *word, int operation, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

static void play(uint32_t mine)
{
	for (int i = 0; i < 3000; i++) {
		uint32_t now;

		while ((now = __atomic_load_n(&ball, __ATOMIC_SEQ_CST)) % 2 != mine)
			CHECK(futex(&ball, FUTEX_WAIT, now, NULL) == 0 || errno == EAGAIN || errno == EINTR);
		__atomic_add_fetch(&ball, 1, __ATOMIC_SEQ_CST);
		SYS(futex(&ball, FUTEX_WAKE, INT_MAX, NULL));
	}
}

static void *player(void *argument)
{
	(void)argument;
	play(1);
	return NULL;
}

static void futexes(void)
{
	struct timespec soon = {0, 10000000};
	pthread_t thread;

	CHECK_OK(pthread_create(&thread, NULL, player, NULL));
	play(0);
	CHECK_OK(pthread_join(thread, NULL));
	CHECK_EQ(ball, 6000);
	CHECK_FAILS(futex(&ball, FUTEX_WAIT, ball, &soon), ETIMEDOUT);
	CHECK_FAILS(futex(&ball, FUTEX_WAIT, 1, &soon), EAGAIN);
	CHECK_FAILS(futex((uint32_t *)0xffffffff81000000UL, FUTEX_WAIT, 0, &soon), EFAULT);
	puts("futex: 6000 strokes");
}

/* fork in a process with threads: only the caller is in the child. */
static void *bystander(void *argument)
{
	while (!__atomic_load_n((int *)argument, __ATOMIC_SEQ_CST))
		sched_yield();
	return NULL;
}

static void fork_with_threads(void)
{
	pthread_t thread[3];
	int done = 0;

	for (int i = 0; i < 3; i++)
		CHECK_OK(pthread_create(&thread[i], NULL, bystander, &done));
	for (int i = 0; i < 10; i++) {
		pid_t child = (pid_t)SYS(fork());

		if (child == 0) {
			pthread_t own;

			ukl_check_mode();
			CHECK_OK(pthread_create(&own, NULL, nothing, NULL));
			CHECK_OK(pthread_join(own, NULL));
			_exit(i);
		}
		ukl_wait_exit(child, i);
	}
	__atomic_store_n(&done, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 3; i++)
		CHECK_OK(pthread_join(thread[i], NULL));
	puts("fork beside threads: ok");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	ukl_begin("threads");
	mutexes();
	conditions();
	barriers();
	locks_and_semaphores();
	thread_locals();
	cancellation();
	directed_signals();
	churn();
	special_mutexes();
	futexes();
	fork_with_threads();
	return ukl_end();
}
