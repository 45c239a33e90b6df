/* link: -luring */
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
	struct io_uring ring;
	struct io_uring_cqe *done;
	char text[] = "hello", back[sizeof(text)] = "";
	int error = io_uring_queue_init(8, &ring, 0);

	if (error < 0) {
		/* A kernel without it, or a sandbox that denies it. */
		printf("liburing %d.%d, io_uring_setup: %s\n", io_uring_major_version(), io_uring_minor_version(),
		       strerror(-error));
		return 0;
	}
	int file = open("/tmp/uring", O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (file < 0)
		return 1;
	struct io_uring_sqe *entry = io_uring_get_sqe(&ring);
	io_uring_prep_write(entry, file, text, sizeof(text), 0);
	entry->flags |= IOSQE_IO_LINK;
	io_uring_prep_read(io_uring_get_sqe(&ring), file, back, sizeof(back), 0);
	if (io_uring_submit_and_wait(&ring, 2) != 2)
		return 2;
	for (int i = 0; i < 2; i++) {
		if (io_uring_wait_cqe(&ring, &done) || done->res != sizeof(text))
			return 3;
		io_uring_cqe_seen(&ring, done);
	}
	if (strcmp(text, back))
		return 4;
	io_uring_queue_exit(&ring);
	printf("liburing %d.%d wrote and read\n", io_uring_major_version(), io_uring_minor_version());
	return 0;
}
