/* link: -lz */
#include <stdio.h>
#include <string.h>
#include <zlib.h>

int main(void)
{
	unsigned char text[4096], packed[4096], back[sizeof(text)];
	uLongf size = sizeof(packed), length = sizeof(back);

	memset(text, 'a', sizeof(text));
	if (compress(packed, &size, text, sizeof(text)) != Z_OK || size > 64)
		return 1;
	if (uncompress(back, &length, packed, size) != Z_OK || memcmp(text, back, length))
		return 2;
	printf("zlib %s\n", zlibVersion());
	return strcmp(zlibVersion(), ZLIB_VERSION) != 0;
}
