/* SPDX-License-Identifier: Apache-2.0 */
/*
 * I/O straight from and into static data: O_DIRECT (pages pinned by the block layer), vectors, splice, AIO-like fan-out by threads,
 * select and futex on static words. In UKL .data and .bss are ordinary user pages; that is what is tested.
 *
 * O_DIRECT needs a file system that has it: $UKL_DIRECT names a folder of one (then it must work), else scratch space is
 * used and, where that refuses, buffered I/O. The output is the same.
 */
#include "uklcheck.h"

#include <pthread.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#define BLOCK 4096
#define BLOCKS 64
#define SIZE (BLOCK * BLOCKS)

static unsigned char in_data[SIZE] __attribute__((aligned(BLOCK))) = {1};
static unsigned char in_bss[SIZE] __attribute__((aligned(BLOCK)));
static const unsigned char in_rodata[BLOCK] __attribute__((aligned(BLOCK))) = {'r', 'o', 'd', 'a', 't', 'a'};
static char path[256];

static int open_direct(int flags)
{
	const char *folder = getenv("UKL_DIRECT");
	int fd;

	if (folder)
		snprintf(path, sizeof path, "%s/uklcheck-odirect", folder);
	else
		ukl_tmp(path, "odirect");
	fd = open(path, flags | O_DIRECT | O_CLOEXEC, 0600);
	if (fd == -1 && !folder && errno == EINVAL)
		fd = open(path, flags | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	return fd;
}

static void fill(unsigned char *block, unsigned seed)
{
	uint64_t state = seed;

	for (size_t i = 0; i < SIZE; i++)
		block[i] = (unsigned char)ukl_random(&state);
}

static void direct(void)
{
	int fd = open_direct(O_RDWR | O_CREAT | O_TRUNC);

	fill(in_data, 1);
	CHECK_EQ(pwrite(fd, in_data, SIZE, 0), SIZE);
	memset(in_bss, 0, SIZE);
	CHECK_EQ(pread(fd, in_bss, SIZE, 0), SIZE);
	CHECK_EQ(memcmp(in_data, in_bss, SIZE), 0);
	CHECK_EQ(pwrite(fd, in_rodata, BLOCK, SIZE), BLOCK);
	CHECK_EQ(pread(fd, in_bss + BLOCK, BLOCK, SIZE), BLOCK);
	CHECK_EQ(memcmp(in_bss + BLOCK, in_rodata, BLOCK), 0);
	CHECK_EQ(memcmp(in_bss, in_data, BLOCK), 0);
	SYS(fsync(fd));
	/* Into memory that may not be written, and into the kernel's: refused. */
	CHECK_FAILS(pread(fd, (void *)(uintptr_t)in_rodata, BLOCK, 0), EFAULT);
	CHECK_FAILS(pread(fd, (void *)0xffffffffc0000000UL, BLOCK, 0), EFAULT);
	CHECK_FAILS(pwrite(fd, (void *)0xffffffff81000000UL, BLOCK, 0), EFAULT);
	SYS(close(fd));
	printf("direct: hash %016llx\n", (unsigned long long)ukl_hash(0, in_data, SIZE));
}

static void vectors(void)
{
	int fd = open_direct(O_RDWR);
	static struct iovec vector[BLOCKS];

	fill(in_data, 2);
	/* Written in order, read back in the opposite one. */
	for (int i = 0; i < BLOCKS; i++)
		vector[i] = (struct iovec){in_data + i * BLOCK, BLOCK};
	CHECK_EQ(pwritev(fd, vector, BLOCKS, 0), SIZE);
	for (int i = 0; i < BLOCKS; i++)
		vector[i] = (struct iovec){in_bss + (BLOCKS - 1 - i) * BLOCK, BLOCK};
	CHECK_EQ(preadv(fd, vector, BLOCKS, 0), SIZE);
	for (int i = 0; i < BLOCKS; i++)
		CHECK_EQ(memcmp(in_data + i * BLOCK, in_bss + (BLOCKS - 1 - i) * BLOCK, BLOCK), 0);
	CHECK_EQ(lseek(fd, 0, SEEK_SET), 0);
	CHECK_EQ(readv(fd, vector, 2), 2 * BLOCK);
	CHECK_EQ(writev(fd, vector, 2), 2 * BLOCK);
	CHECK_EQ(lseek(fd, 0, SEEK_CUR), 4 * BLOCK);
	SYS(close(fd));
	printf("vectors: %d blocks there and back\n", BLOCKS);
}

/* A child's copy of a page under I/O must be its own. */
static void beside_fork(void)
{
	int fd = open_direct(O_RDWR);

	fill(in_data, 3);
	CHECK_EQ(pwrite(fd, in_data, SIZE, 0), SIZE);
	for (int round = 0; round < 20; round++) {
		pid_t child;

		memset(in_bss, round, SIZE);
		child = (pid_t)SYS(fork());
		if (child == 0) {
			for (size_t i = 0; i < SIZE; i += 61)
				CHECK_EQ(in_bss[i], round);
			memset(in_bss, 0xee, SIZE);
			_exit(0);
		}
		CHECK_EQ(pread(fd, in_bss, SIZE, 0), SIZE);
		ukl_wait_exit(child, 0);
		CHECK_EQ(memcmp(in_data, in_bss, SIZE), 0);
	}
	SYS(close(fd));
	puts("reads beside fork: 20 rounds");
}

static int shared_fd;

static void *hammer(void *argument)
{
	long self = (long)argument;
	unsigned char *mine = in_bss + self * (SIZE / 4);

	for (int round = 0; round < 50; round++) {
		memset(mine, (int)(self * 50 + round), SIZE / 4);
		CHECK_EQ(pwrite(shared_fd, mine, SIZE / 4, self * (SIZE / 4)), SIZE / 4);
		memset(mine, 0, SIZE / 4);
		CHECK_EQ(pread(shared_fd, mine, SIZE / 4, self * (SIZE / 4)), SIZE / 4);
		for (size_t i = 0; i < SIZE / 4; i += 31)
			CHECK_EQ(mine[i], (unsigned char)(self * 50 + round));
	}
	return NULL;
}

static void by_threads(void)
{
	pthread_t thread[4];

	shared_fd = open_direct(O_RDWR);
	for (long i = 0; i < 4; i++)
		CHECK_OK(pthread_create(&thread[i], NULL, hammer, (void *)i));
	for (int i = 0; i < 4; i++)
		CHECK_OK(pthread_join(thread[i], NULL));
	SYS(close(shared_fd));
	puts("4 threads: 400 transfers");
}

static void splices(void)
{
	static int ends[2];
	static fd_set ready;
	static struct timeval none;
	struct iovec page = {in_data, BLOCK};
	int fd;

	SYS(unlink(path));
	fd = (int)SYS(open(path, O_RDWR | O_CREAT | O_EXCL, 0600));
	fill(in_data, 4);
	SYS(pipe(ends));
	FD_ZERO(&ready);
	FD_SET(ends[0], &ready);
	CHECK_EQ(select(ends[0] + 1, &ready, NULL, NULL, &none), 0);
	CHECK_EQ(vmsplice(ends[1], &page, 1, 0), BLOCK);
	FD_SET(ends[0], &ready);
	CHECK_EQ(select(ends[0] + 1, &ready, NULL, NULL, &none), 1);
	CHECK_EQ(splice(ends[0], NULL, fd, NULL, BLOCK, 0), BLOCK);
	CHECK_EQ(pread(fd, in_bss, BLOCK, 0), BLOCK);
	CHECK_EQ(memcmp(in_bss, in_data, BLOCK), 0);
	SYS(close(ends[0]));
	SYS(close(ends[1]));
	SYS(close(fd));
	SYS(unlink(path));
	puts("vmsplice, splice, select: ok");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	ukl_begin("odirect");
	direct();
	vectors();
	beside_fork();
	by_threads();
	splices();
	return ukl_end();
}
