/* link: -lzstd */
#include <stdio.h>
#include <string.h>
#include <zstd.h>

int main(void)
{
	static char text[1 << 20], packed[1 << 20], back[sizeof(text)];
	ZSTD_CCtx *context = ZSTD_createCCtx();

	memset(text, 'a', sizeof(text));
	/* Two threads of the library's own. */
	if (ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_nbWorkers, 2)))
		return 1;
	size_t size = ZSTD_compress2(context, packed, sizeof(packed), text, sizeof(text));
	if (ZSTD_isError(size) || size > 1024)
		return 2;
	if (ZSTD_decompress(back, sizeof(back), packed, size) != sizeof(back) || memcmp(text, back, sizeof(back)))
		return 3;
	ZSTD_freeCCtx(context);
	printf("zstd %s\n", ZSTD_versionString());
	return 0;
}
