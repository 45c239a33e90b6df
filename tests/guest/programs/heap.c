/* SPDX-License-Identifier: Apache-2.0 */
/* The heap: 64 MiB touched, many small blocks, mmap, mprotect, mremap, brk, mapped files, running out. */
#include "uklcheck.h"

#include <malloc.h>
#include <setjmp.h>

#define MIB (1ul << 20)
#define BIG (64 * MIB)
#define PAGE 4096ul
#define SLOTS 2000

static sigjmp_buf recover;
static void *volatile fault_address;

static void on_segv(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	fault_address = info->si_addr;
	siglongjmp(recover, 1);
}

/* Whether a store to this byte is SIGSEGV with that address. */
static int store_faults(volatile char *at)
{
	fault_address = NULL;
	if (sigsetjmp(recover, 1) == 0) {
		*at = 1;
		return 0;
	}
	CHECK(fault_address == (void *)(uintptr_t)at);
	return 1;
}

static void big_block(void)
{
	uint64_t *block = malloc(BIG), sum = 0;
	size_t words = BIG / sizeof *block;

	CHECK(block != NULL);
	for (size_t i = 0; i < words; i++)
		block[i] = i * 0x9e3779b97f4a7c15ULL;
	for (size_t i = 0; i < words; i++) {
		CHECK(block[i] == i * 0x9e3779b97f4a7c15ULL);
		sum += block[i];
	}
	printf("64 MiB block: sum %016llx\n", (unsigned long long)sum);
	/* realloc of a mapped block is mremap. */
	block = realloc(block, BIG / 4);
	CHECK(block != NULL);
	for (size_t i = 0; i < words / 4; i += 511)
		CHECK(block[i] == i * 0x9e3779b97f4a7c15ULL);
	block = realloc(block, BIG / 2);
	CHECK(block != NULL);
	for (size_t i = 0; i < words / 4; i += 511)
		CHECK(block[i] == i * 0x9e3779b97f4a7c15ULL);
	free(block);
}

static void small_blocks(void)
{
	static unsigned char *slot[SLOTS];
	static size_t size[SLOTS];
	uint64_t state = 7;
	size_t live = 0;

	for (int round = 0; round < 60000; round++) {
		size_t i = ukl_random(&state) % SLOTS;
		unsigned char mark = (unsigned char)(i * 31 + 1);

		if (slot[i]) {
			CHECK(slot[i][0] == mark && slot[i][size[i] - 1] == mark && slot[i][size[i] / 2] == mark);
			free(slot[i]);
			slot[i] = NULL;
			live--;
			continue;
		}
		size[i] = 1 + ukl_random(&state) % (round % 50 ? 900 : 40000);
		slot[i] = malloc(size[i]);
		CHECK(slot[i] != NULL && (uintptr_t)slot[i] % 16 == 0);
		memset(slot[i], mark, size[i]);
		live++;
	}
	printf("small blocks: %zu live\n", live);
	for (size_t i = 0; i < SLOTS; i++)
		free(slot[i]);
}

static void other_allocators(void)
{
	unsigned char *zeroed = calloc(1000, 1000);
	void *aligned = NULL;
	volatile size_t too_much = (size_t)1 << 60;

	CHECK(zeroed != NULL);
	for (size_t i = 0; i < 1000000; i++)
		CHECK(zeroed[i] == 0);
	free(zeroed);
	for (size_t alignment = 16; alignment <= 65536; alignment *= 2) {
		CHECK_OK(posix_memalign(&aligned, alignment, 3 * alignment));
		CHECK((uintptr_t)aligned % alignment == 0);
		memset(aligned, 0xa5, 3 * alignment);
		free(aligned);
	}
	CHECK(malloc(too_much) == NULL && errno == ENOMEM);
	CHECK(calloc(too_much, 16) == NULL && errno == ENOMEM);
	puts("calloc, posix_memalign, too much: ok");
}

static void mappings(void)
{
	char *map = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *moved;
	unsigned char resident[16];

	CHECK(map != MAP_FAILED);
	for (size_t i = 0; i < 16; i++)
		map[i * PAGE] = (char)(i + 1);
	SYS(mprotect(map + 4 * PAGE, PAGE, PROT_READ));
	CHECK_EQ(map[4 * PAGE], 5);
	CHECK(store_faults(map + 4 * PAGE + 123));
	CHECK(!store_faults(map + 5 * PAGE + 123));
	SYS(mprotect(map + 4 * PAGE, PAGE, PROT_NONE));
	CHECK(store_faults(map + 4 * PAGE));
	SYS(mprotect(map + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE));
	CHECK(!store_faults(map + 4 * PAGE + 1));
	CHECK_EQ(map[4 * PAGE], 5);

	SYS(munmap(map + 8 * PAGE, PAGE));
	CHECK(store_faults(map + 8 * PAGE));
	CHECK_FAILS(mincore(map + 8 * PAGE, PAGE, resident), ENOMEM);
	CHECK(mmap(map + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == map + 8 * PAGE);
	CHECK_EQ(map[8 * PAGE], 0);
	CHECK(mmap(map, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);

	SYS(madvise(map + 2 * PAGE, PAGE, MADV_DONTNEED));
	CHECK_EQ(map[2 * PAGE], 0);
	CHECK_EQ(map[3 * PAGE], 4);

	moved = mremap(map, 16 * PAGE, 4096 * PAGE, MREMAP_MAYMOVE);
	CHECK(moved != MAP_FAILED);
	CHECK_EQ(moved[15 * PAGE], 16);
	moved[4095 * PAGE] = 'e';
	CHECK(mremap(moved, 4096 * PAGE, 8 * PAGE, 0) == moved);
	CHECK(store_faults(moved + 9 * PAGE));
	CHECK_EQ(moved[7 * PAGE], 8);
	SYS(munmap(moved, 8 * PAGE));
	CHECK_FAILS(mprotect(moved, PAGE, PROT_READ), ENOMEM);
	puts("mmap, mprotect, mremap, madvise: ok");
}

/* Mapping into the kernel's half is impossible, whoever asks. */
static void kernel_half(void)
{
	void *const places[] = {(void *)0xffffffff81000000UL, (void *)0xffffffffc0000000UL, (void *)0xffff888000000000UL};

	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		CHECK(mmap(places[i], PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED);
		CHECK(errno == ENOMEM || errno == EINVAL);
		CHECK(mprotect(places[i], PAGE, PROT_READ | PROT_WRITE) == -1);
		CHECK(munmap(places[i], PAGE) == -1);
		CHECK(madvise(places[i], PAGE, MADV_DONTNEED) == -1);
	}
	puts("the kernel's half cannot be mapped: ok");
}

static void program_break(void)
{
	char *before = sbrk(0), *block;

	CHECK(before != (void *)-1);
	block = sbrk(3 * (intptr_t)MIB);
	CHECK(block == before);
	memset(block, 0x77, 3 * MIB);
	CHECK(sbrk(0) == before + 3 * MIB);
	SYS(brk(before + 4 * MIB));
	CHECK_EQ(before[4 * MIB - 1], 0);
	SYS(brk(before));
	CHECK(sbrk(0) == before);
	block = sbrk((intptr_t)MIB);
	/* The page that was given back comes again as zeroes (the first may be shared with what was there before). */
	for (size_t i = PAGE; i < MIB; i += PAGE)
		CHECK_EQ(block[i], 0);
	SYS(brk(before));
	puts("brk: ok");
}

static void mapped_file(void)
{
	char path[256], seen[32];
	int fd = (int)SYS(open(ukl_tmp(path, "heap"), O_RDWR | O_CREAT | O_EXCL, 0600));
	char *shared, *private;

	SYS(ftruncate(fd, 8 * (off_t)PAGE));
	shared = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	private = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(shared != MAP_FAILED && private != MAP_FAILED);
	strcpy(shared + PAGE, "written through the map");
	SYS(msync(shared, 8 * PAGE, MS_SYNC));
	CHECK_EQ(pread(fd, seen, 24, PAGE), 24);
	CHECK_STR(seen, "written through the map");
	CHECK_STR(private + PAGE, "written through the map");
	strcpy(private + PAGE, "private");
	CHECK_STR(shared + PAGE, "written through the map");
	SYS(pwrite(fd, "W", 1, PAGE));
	CHECK_EQ(shared[PAGE], 'W');
	CHECK_EQ(private[PAGE], 'p');
	SYS(munmap(shared, 8 * PAGE));
	SYS(munmap(private, 8 * PAGE));
	SYS(close(fd));
	SYS(unlink(path));
	puts("mapped file: ok");
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	ukl_begin("heap");
	ukl_handle_info(SIGSEGV, on_segv, 0);
	big_block();
	small_blocks();
	other_allocators();
	mappings();
	kernel_half();
	program_break();
	mapped_file();
	CHECK(malloc_trim(0) >= 0);
	return ukl_end();
}
