/* link: -laio */
#define _GNU_SOURCE
#include <fcntl.h>
#include <libaio.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
	io_context_t context = 0;
	struct iocb block, *list[] = {&block};
	struct io_event event;
	char text[] = "hello", back[sizeof(text)] = "";
	int file = open("/tmp/aio", O_RDWR | O_CREAT | O_TRUNC, 0600);

	if (file < 0 || io_setup(4, &context) < 0)
		return 1;
	io_prep_pwrite(&block, file, text, sizeof(text), 0);
	if (io_submit(context, 1, list) != 1 || io_getevents(context, 1, 1, &event, NULL) != 1)
		return 2;
	if (event.res != sizeof(text) || pread(file, back, sizeof(back), 0) != sizeof(back) || strcmp(text, back))
		return 3;
	io_destroy(context);
	printf("libaio wrote %lu bytes\n", event.res);
	return 0;
}
