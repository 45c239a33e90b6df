/* SPDX-License-Identifier: Apache-2.0 */
/* printf, scanf, files: formatting, seeking, large buffered files, pipes as streams, errors. */
#include "uklcheck.h"

#include <limits.h>
#include <math.h>

#define BIG_BYTES (3u << 20)
#define LINES 20000

static char bounce[70000];

static void formats(void)
{
	char text[256];
	volatile size_t room = 8;
	int length;

	printf("%d %i %u %x %X %o %c %s|%10s|%-10s|%.3s\n", -42, 42, 42u, 0xbeefu, 0xbeefu, 8u, 'c', "text", "right", "left",
	       "truncated");
	printf("%ld %lld %zu %jd %hhd %hd\n", LONG_MIN, LLONG_MAX, (size_t)SIZE_MAX, (intmax_t)INTMAX_MIN, (signed char)-1,
	       (short)-2);
	printf("%.17g %e %g %a %08.3f %+.2f %Lf\n", 0.1, 12345.678, 1e-10, 1.5, 3.14159, 2.5, 1.25L);
	printf("%f %f %g %s\n", HUGE_VAL, -HUGE_VAL, 1e308, isnan(strtod("nan", NULL)) ? "nan" : "?");
	printf("%5d|%-5d|%05d|%+d|% d|%*d|%.*f\n", 7, 7, 7, 7, 7, 6, 7, 2, 2.71828);
	length = snprintf(text, room, "%s", "longer than eight");
	CHECK_EQ(length, 17);
	CHECK_STR(text, "longer ");
	CHECK_EQ(snprintf(NULL, 0, "%d", 12345), 5);
	printf("%s%n", "counted", &length);
	printf(" %d\n", length);
}

static void scans(void)
{
	int a = 0, b = 0, count = 0;
	unsigned hex = 0;
	double real = 0;
	char word[32] = "", set[32] = "", rest[32] = "";

	count = sscanf("12 -7 0x1f 2.5e3 word abc123 tail of it", "%d %d %x %lf %31s %31[a-z]%*d %31[^\n]", &a, &b, &hex, &real, word,
		       set, rest);
	CHECK_EQ(count, 7);
	CHECK_EQ(a, 12);
	CHECK_EQ(b, -7);
	CHECK_EQ(hex, 0x1f);
	CHECK(real == 2500.0);
	CHECK_STR(word, "word");
	CHECK_STR(set, "abc");
	CHECK_STR(rest, "tail of it");
	CHECK_EQ(sscanf("x", "%d", &a), 0);
	CHECK_EQ(sscanf("", "%d", &a), EOF);
	puts("scanf: ok");
}

static void standard_input(const char *path)
{
	FILE *file = fopen(path, "w");
	int number = 0, sum = 0, count = 0;
	char *line = NULL;
	size_t room = 0;

	CHECK(file != NULL);
	for (int i = 1; i <= 1000; i++)
		fprintf(file, "%d\n", i);
	fputs("last line without its newline", file);
	CHECK_EQ(fclose(file), 0);

	CHECK(freopen(path, "r", stdin) != NULL);
	for (count = 0; scanf("%d", &number) == 1; count++)
		sum += number;
	CHECK_EQ(count, 1000);
	CHECK_EQ(sum, 500500);
	CHECK_EQ(getline(&line, &room, stdin), 29);
	CHECK_STR(line, "last line without its newline");
	CHECK_EQ(getchar(), EOF);
	CHECK(feof(stdin) && !ferror(stdin));
	free(line);
	printf("stdin: %d numbers, sum %d\n", count, sum);
}

static void large_file(const char *path)
{
	uint64_t state = 1, written = 0, seen = 0;
	size_t left, chunk;
	FILE *file = fopen(path, "w+");

	CHECK(file != NULL);
	/* A buffer of our own, in static data: stdio hands it to write(2) as it is. */
	CHECK_EQ(setvbuf(file, bounce, _IOFBF, 65536), 0);
	for (left = BIG_BYTES; left; left -= chunk) {
		unsigned char piece[777];

		chunk = left < sizeof piece ? left : sizeof piece;
		for (size_t i = 0; i < chunk; i++)
			piece[i] = (unsigned char)ukl_random(&state);
		CHECK_EQ(fwrite(piece, 1, chunk, file), chunk);
		written = ukl_hash(written, piece, chunk);
	}
	CHECK_EQ(ftell(file), BIG_BYTES);
	rewind(file);
	for (left = BIG_BYTES; left; left -= chunk) {
		unsigned char piece[1021];

		chunk = left < sizeof piece ? left : sizeof piece;
		CHECK_EQ(fread(piece, 1, chunk, file), chunk);
		seen = ukl_hash(seen, piece, chunk);
	}
	CHECK_EQ(fgetc(file), EOF);
	CHECK(written == seen);
	CHECK_EQ(fclose(file), 0);
	printf("large file: %u bytes, hash %016llx\n", BIG_BYTES, (unsigned long long)seen);
}

static void seeking(const char *path)
{
	FILE *file = fopen(path, "w+");
	char text[16];

	CHECK(file != NULL);
	for (int i = 0; i < LINES; i++)
		fprintf(file, "%07d\n", i);
	for (int i = 0; i < 2000; i++) {
		int line = (i * 7919) % LINES;

		CHECK_EQ(fseek(file, line * 8L, SEEK_SET), 0);
		CHECK(fgets(text, sizeof text, file) != NULL);
		CHECK_EQ(atoi(text), line);
	}
	CHECK_EQ(fseek(file, -8, SEEK_END), 0);
	CHECK(fgets(text, sizeof text, file) != NULL);
	CHECK_EQ(atoi(text), LINES - 1);
	CHECK_EQ(fseek(file, 80, SEEK_SET), 0);
	CHECK_EQ(fputs("patched\n", file) >= 0, 1);
	CHECK_EQ(fseek(file, -8, SEEK_CUR), 0);
	CHECK(fgets(text, sizeof text, file) != NULL);
	CHECK_STR(text, "patched\n");
	CHECK_EQ(ungetc('u', file), 'u');
	CHECK_EQ(fgetc(file), 'u');
	CHECK_EQ(ftruncate(fileno(file), 800), 0);
	CHECK_EQ(fseek(file, 0, SEEK_END), 0);
	CHECK_EQ(ftell(file), 800);
	CHECK_EQ(fclose(file), 0);

	file = fopen(path, "a+");
	CHECK(file != NULL);
	fputs("appended\n", file);
	CHECK_EQ(ftell(file), 809);
	CHECK_EQ(fclose(file), 0);
	puts("seek: ok");
}

static void streams(void)
{
	char *memory = NULL, text[64];
	size_t size = 0;
	int ends[2];
	FILE *file = open_memstream(&memory, &size), *in, *out;

	CHECK(file != NULL);
	for (int i = 0; i < 5000; i++)
		fprintf(file, "%d,", i);
	CHECK_EQ(fclose(file), 0);
	CHECK_EQ(size, strlen(memory));
	printf("memory stream: %zu bytes, ends in %s\n", size, memory + size - 5);
	free(memory);

	SYS(pipe(ends));
	in = fdopen(ends[0], "r");
	out = fdopen(ends[1], "w");
	CHECK(in && out);
	fprintf(out, "through a pipe %d\n", 17);
	CHECK_EQ(fclose(out), 0);
	CHECK(fgets(text, sizeof text, in) != NULL);
	CHECK_STR(text, "through a pipe 17\n");
	CHECK(fgets(text, sizeof text, in) == NULL && feof(in));
	CHECK_EQ(fclose(in), 0);
}

static void errors(const char *path)
{
	FILE *file;

	CHECK(fopen("/no/such/folder/file", "r") == NULL && errno == ENOENT);
	CHECK(fopen("/", "w") == NULL && errno == EISDIR);
	file = fopen(path, "r");
	CHECK(file != NULL);
	CHECK_EQ(fputc('x', file), EOF);
	CHECK(ferror(file) && errno == EBADF);
	fclose(file);
	SYS(unlink(path));
	CHECK_FAILS(open(path, O_RDONLY), ENOENT);
	printf("errors: %s, %s, %s\n", strerror(ENOENT), strerror(EISDIR), strerror(EBADF));
}

int main(int argc UKL_UNUSED, char **argv UKL_UNUSED)
{
	char path[256];

	ukl_begin("stdio");
	ukl_tmp(path, "stdio");
	formats();
	scans();
	standard_input(path);
	large_file(path);
	seeking(path);
	streams();
	errors(path);
	return ukl_end();
}
