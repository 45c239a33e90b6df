/* A program for tests of guests: serves an echo on port 7 until SIGTERM, ends at once, or fails for a while. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static volatile sig_atomic_t stopped;

static void stop(int number)
{
	stopped = number;
}

static int serve(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(7) };
	struct sigaction action = { .sa_handler = stop };
	char text[64];
	int server = socket(AF_INET, SOCK_STREAM, 0), client;

	sigaction(SIGTERM, &action, NULL);
	if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 5))
		return 1;
	printf("listening %s\n", getenv("GREETING") ? getenv("GREETING") : "");
	fflush(stdout);
	while (!stopped && (client = accept(server, NULL, NULL)) >= 0) {
		ssize_t size = read(client, text, sizeof text);

		if (size > 0 && write(client, text, (size_t)size) < 0)
			return 1;
		close(client);
	}
	puts(stopped == SIGTERM ? "stopped" : "failed");
	return stopped == SIGTERM ? 7 : 1;
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "end")) { /* end STATUS */
		for (int i = 0; i < 100; i++)
			printf("line %d\n", i);
		return atoi(argv[2]);
	}
	if (argc > 3 && !strcmp(argv[1], "count")) { /* count FILE N: fail until it has run N times, then serve */
		FILE *file = fopen(argv[2], "a+");
		long times;

		if (!file || fputc('x', file) == EOF || fflush(file))
			return 1;
		fseek(file, 0, SEEK_END);
		times = ftell(file);
		fclose(file);
		printf("run %ld\n", times);
		fflush(stdout);
		if (times < atoi(argv[3]))
			return 3;
	}
	return serve();
}
