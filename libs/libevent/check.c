/* link: -levent_openssl -levent_pthreads -levent -lssl -lcrypto */
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <event2/thread.h>
#include <openssl/ssl.h>
#include <stdio.h>

static void tick(evutil_socket_t file, short what, void *count)
{
	(void)file;
	(void)what;
	++*(int *)count;
}

int main(void)
{
	int count = 0;
	struct timeval soon = {0, 1000};

	if (evthread_use_pthreads() < 0)
		return 1;
	struct event_base *base = event_base_new();
	struct event *timer = event_new(base, -1, 0, tick, &count);
	event_add(timer, &soon);
	if (event_base_dispatch(base) < 0 || count != 1)
		return 2;
	SSL_CTX *context = SSL_CTX_new(TLS_client_method());
	struct bufferevent *buffer =
		bufferevent_openssl_socket_new(base, -1, SSL_new(context), BUFFEREVENT_SSL_CONNECTING, BEV_OPT_CLOSE_ON_FREE);
	if (buffer == NULL)
		return 3;
	printf("libevent %s with %s\n", event_get_version(), event_base_get_method(base));
	return 0;
}
