/* link: -llz4 */
#include <lz4.h>
#include <lz4frame.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
	char text[4096], packed[4096], back[sizeof(text)];

	memset(text, 'a', sizeof(text));
	int size = LZ4_compress_default(text, packed, sizeof(text), sizeof(packed));
	if (size <= 0 || size > 64)
		return 1;
	if (LZ4_decompress_safe(packed, back, size, sizeof(back)) != sizeof(back) || memcmp(text, back, sizeof(back)))
		return 2;
	if (LZ4F_compressFrameBound(1000, NULL) < 1000)
		return 3;
	printf("lz4 %s\n", LZ4_versionString());
	return 0;
}
