/*
 * PID 1 of a uklimg image: a small static program in ring 3.
 *
 * It mounts what every program expects, takes its configuration from the runner (virtio-serial port
 * "org.uklimg.control") or, where there is none, from /etc/uklimg/run.conf and the kernel command line, runs the
 * program (or several, in order), passes a stop request on as the image's stop signal, reaps, reports the wait
 * status and powers off. The format of the configuration and of the reports is in protocol.py, next to this file.
 *
 * Rules of this file: nothing is fatal that a program could live without; what is fatal ends in a line that begins
 * with "uklimg: error:" and in status 125; no path leaves main() except power_off().
 */
#define _GNU_SOURCE
#include "commands.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "org.uklimg.control"
#define RUN_CONF "/etc/uklimg/run.conf"
#define CONFIG_MAX (4u << 20)
#define PORT_WAIT_MS 30000 /* for a runner that has the port but is slow to send; ours sends before we boot */
#define GRACE_DEFAULT 10   /* seconds between stop signal and SIGKILL */
#define LEFTOVER_MS 2000   /* for helpers and orphans, between SIGTERM and SIGKILL */
#define INPUTS_MAX 8
#define OWN_FAILURE 125

struct list { /* of strings, NULL-terminated once it has an item */
	char **items;
	size_t count;
};

enum kind { PROGRAM, BESIDE, MOUNT };

struct section {
	enum kind kind;
	char *name;  /* name or path of a program; mount point */
	char *label; /* what reports call it */
	struct list args, env;
	char *workdir, *type, *source, *data;
	bool read_only, wait, stop;
	long timeout; /* seconds, 0 = none */
	long keep;    /* leading arguments that the kernel command line does not replace */
	/* while it runs */
	pid_t pid;
	int64_t deadline;
	bool timed_out;
};

struct config {
	struct section *sections;
	size_t count;
	struct list env;
	char *workdir, *hostname;
	long stop_signal, grace;
	bool markers, raw_console, versioned;
};

static struct config config = { .stop_signal = SIGTERM, .grace = GRACE_DEFAULT };
static int port = -1;
static struct {
	int fd; /* -1: not there */
	pid_t pid; /* of the child that serves it, 0 for none */
} command_ports[COMMAND_PORTS];
static int first_failure; /* wait status; 0 while everything went well */
static bool stopping, stopped_by_helper;
static int64_t kill_at; /* monotonic milliseconds, 0 = never */

static void finish(void) __attribute__((noreturn));

/* ---- small things ---------------------------------------------------------------------------------------- */

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void write_all(int fd, const char *text, size_t length)
{
	while (length) {
		ssize_t done = write(fd, text, length);

		if (done < 0 && (errno == EINTR || errno == EAGAIN)) {
			struct pollfd p = { .fd = fd, .events = POLLOUT };

			if (errno == EAGAIN && poll(&p, 1, 2000) <= 0)
				return;
			continue;
		}
		if (done <= 0)
			return;
		text += done;
		length -= (size_t)done;
	}
}

static void print(int fd, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void print(int fd, const char *format, ...)
{
	char line[1024];
	va_list args;
	int length;

	if (fd < 0)
		return;
	va_start(args, format);
	length = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (length < 0)
		return;
	if ((size_t)length >= sizeof(line)) {
		length = sizeof(line) - 1;
		line[length - 1] = '\n';
	}
	write_all(fd, line, (size_t)length);
}

/* A name that is safe inside a marker line and a JSON string. */
static const char *plain(const char *name)
{
	static char text[128];
	size_t i;

	for (i = 0; name[i] && i < sizeof(text) - 1; i++)
		text[i] = isalnum((unsigned char)name[i]) || strchr("._+-/@:", name[i]) ? name[i] : '_';
	text[i] = '\0';
	return text;
}

static void fatal(const char *what, const char *which, int error) __attribute__((noreturn));
static void fatal(const char *what, const char *which, int error)
{
	char text[400];

	snprintf(text, sizeof(text), "%s %s%s%s", what, plain(which), error ? ": " : "", error ? strerror(error) : "");
	print(STDOUT_FILENO, "uklimg: error: %s\n", text);
	print(port, "{\"error\":\"%s\"}\n", text);
	first_failure = W_EXITCODE(OWN_FAILURE, 0);
	finish();
}

static void *need(void *memory)
{
	if (!memory)
		fatal("out of memory in", "init", 0);
	return memory;
}

static void append(struct list *list, char *item)
{
	list->items = need(realloc(list->items, (list->count + 2) * sizeof(*list->items)));
	list->items[list->count++] = item;
	list->items[list->count] = NULL;
}

/* Add NAME=value, replacing an earlier NAME=. */
static void put_env(struct list *list, char *item)
{
	size_t length = strcspn(item, "=");

	for (size_t i = 0; i < list->count; i++)
		if (!strncmp(list->items[i], item, length) && list->items[i][length] == '=') {
			list->items[i] = item;
			return;
		}
	append(list, item);
}

static long number(const char *text, long low, long high, const char *field)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (errno || end == text || *end || value < low || value > high)
		fatal("bad value in the run configuration:", field, 0);
	return value;
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd >= 0) {
		write_all(fd, text, strlen(text));
		close(fd);
	}
}

/* Up to `size - 1` bytes of a file, NUL-terminated; -1 when it cannot be read. */
static ssize_t read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t used = 0;

	if (fd < 0)
		return -1;
	while (used < size - 1) {
		ssize_t got = read(fd, buffer + used, size - 1 - used);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		used += (size_t)got;
	}
	close(fd);
	buffer[used] = '\0';
	return (ssize_t)used;
}

static void make_dirs(const char *path)
{
	char *copy = need(strdup(path));

	for (char *p = copy + 1; *p; p++)
		if (*p == '/') {
			*p = '\0';
			mkdir(copy, 0755);
			*p = '/';
		}
	mkdir(copy, 0755);
	free(copy);
}

/* ---- the file system and the network ------------------------------------------------------------------------ */

static void mount_system(void)
{
	static const struct {
		const char *type, *target, *data;
		unsigned long flags;
	} table[] = {
		{ "proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "devtmpfs", "/dev", "mode=0755", MS_NOSUID },
		{ "devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC },
		{ "tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV },
		{ "tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV },
		{ "tmpfs", "/run", "mode=0755", MS_NOSUID | MS_NODEV },
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		make_dirs(table[i].target);
		/* EBUSY: a foreign initramfs or the kernel was here first. A kernel without one of them is no reason
		 * to stop: the program says so itself if it needs it. */
		mount(table[i].type, table[i].target, table[i].type, table[i].flags, table[i].data);
	}
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
}

/* Runtimes that say nothing of a console (KraftKit) listen to the first serial port, while the kernel prefers a screen,
 * even where there is none and its driver a dummy. */
static bool screen_is_a_dummy(void)
{
	static char line[8192];
	char name[64] = "";

	if (read_file("/proc/cmdline", line, sizeof(line)) > 0 && strstr(line, "console="))
		return false;
	return read_file("/sys/class/vtconsole/vtcon0/name", name, sizeof(name)) > 0 && strstr(name, "dummy") &&
	       access("/sys/class/vtconsole/vtcon1", F_OK) < 0;
}

static void open_console(void)
{
	struct termios mode;
	int fd = -1;

	if (screen_is_a_dummy()) {
		fd = open("/dev/ttyS0", O_RDWR | O_NOCTTY);
		if (fd >= 0 && tcgetattr(fd, &mode) < 0) { /* a port that is not there can be opened, and no more */
			close(fd);
			fd = -1;
		}
	}
	if (fd < 0)
		fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd < 0)
		fd = open("/dev/null", O_RDWR);
	for (int i = 0; i <= 2 && fd >= 0; i++)
		if (fd != i)
			dup2(fd, i);
	if (fd > 2)
		close(fd);
}

/* The runner wants the program's bytes as they are: no CR before LF, and nothing that was typed once more. */
static void set_raw_console(void)
{
	struct termios mode;

	if (tcgetattr(STDOUT_FILENO, &mode) == 0) {
		mode.c_oflag &= ~(tcflag_t)OPOST;
		mode.c_lflag &= ~(tcflag_t)ECHO;
		tcsetattr(STDOUT_FILENO, TCSANOW, &mode);
	}
}

static void loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return;
	if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
		request.ifr_flags |= IFF_UP | IFF_RUNNING;
		ioctl(fd, SIOCSIFFLAGS, &request);
	}
	close(fd);
}

/* What the kernel's own DHCP learnt (net/ipv4/ipconfig.c writes it in resolv.conf's format). A resolv.conf with
 * something in it came with the image and stays. */
static void write_resolv_conf(void)
{
	char pnp[2048], text[2048] = "", *save = NULL;
	struct stat st;

	if (stat("/etc/resolv.conf", &st) == 0 && st.st_size > 0)
		return;
	if (read_file("/proc/net/pnp", pnp, sizeof(pnp)) <= 0)
		return;
	for (char *line = strtok_r(pnp, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (strncmp(line, "nameserver ", 11) && strncmp(line, "domain ", 7) && strncmp(line, "search ", 7))
			continue;
		if (!strcmp(line, "nameserver 0.0.0.0"))
			continue;
		strcat(strcat(text, line), "\n"); /* a part of pnp, so it fits */
	}
	if (*text) {
		make_dirs("/etc");
		write_file("/etc/resolv.conf", text);
	}
}

static void raise_limits(void)
{
	struct rlimit files = { .rlim_cur = 65536, .rlim_max = 1048576 };

	setrlimit(RLIMIT_NOFILE, &files);
}

static void mount_volumes(void)
{
	for (size_t i = 0; i < config.count; i++) {
		struct section *m = &config.sections[i];

		if (m->kind != MOUNT)
			continue;
		make_dirs(m->name);
		if (mount(m->source ? m->source : "none", m->name, m->type ? m->type : "9p",
			  m->read_only ? MS_RDONLY : 0, m->data))
			fatal("cannot mount the volume", m->name, errno);
	}
}

/* ---- the configuration --------------------------------------------------------------------------------------- */

static struct section *add_section(enum kind kind, char *name)
{
	struct section *s;

	config.sections = need(realloc(config.sections, (config.count + 1) * sizeof(*config.sections)));
	s = &config.sections[config.count++];
	memset(s, 0, sizeof(*s));
	s->kind = kind;
	s->name = s->label = name;
	s->keep = 1;
	return s;
}

/* One "key=value". Keys that we do not know are left to newer versions of this file. */
static void take_record(char *record)
{
	char *value = strchr(record, '=');
	struct section *s = config.count ? &config.sections[config.count - 1] : NULL;

	if (!value)
		fatal("bad record in the run configuration:", record, 0);
	*value++ = '\0';
#define IS(key) (!strcmp(record, key))
	if (IS("version")) {
		number(value, 1, 1, "version");
		config.versioned = true;
	} else if (IS("program"))
		add_section(PROGRAM, value);
	else if (IS("beside"))
		add_section(BESIDE, value);
	else if (IS("mount"))
		add_section(MOUNT, value);
	else if (IS("stop-signal"))
		config.stop_signal = number(value, 1, 64, record);
	else if (IS("grace"))
		config.grace = number(value, 0, 86400, record);
	else if (IS("hostname"))
		config.hostname = value;
	else if (IS("markers"))
		config.markers = number(value, 0, 1, record);
	else if (IS("raw-console"))
		config.raw_console = number(value, 0, 1, record);
	else if (IS("env"))
		put_env(s ? &s->env : &config.env, value);
	else if (IS("workdir"))
		*(s ? &s->workdir : &config.workdir) = value;
	else if (!s)
		return;
	else if (IS("arg"))
		append(&s->args, value);
	else if (IS("label"))
		s->label = value;
	else if (IS("keep"))
		s->keep = number(value, 0, 65536, record);
	else if (IS("timeout"))
		s->timeout = number(value, 0, 1000000, record);
	else if (IS("wait"))
		s->wait = number(value, 0, 1, record);
	else if (IS("stop"))
		s->stop = number(value, 0, 1, record);
	else if (IS("type"))
		s->type = value;
	else if (IS("source"))
		s->source = value;
	else if (IS("data"))
		s->data = value;
	else if (IS("read-only"))
		s->read_only = number(value, 0, 1, record);
#undef IS
}

/* Records up to an empty one or the end; `buffer` stays ours for ever, since the configuration points into it. */
static void take_config(char *buffer, size_t length)
{
	for (size_t at = 0; at < length && buffer[at];) {
		size_t size = strlen(buffer + at);

		take_record(buffer + at);
		at += size + 1;
	}
	if (!config.versioned)
		fatal("no version in the", "run configuration", 0);
}

/* Words after a lone "--" of the kernel command line, quoted as the kernel understands it. */
static int words_after_dashes(void)
{
	static char line[8192];
	bool quoted = false, in_word = false, after = false;
	int words = 0;
	size_t start = 0;

	if (read_file("/proc/cmdline", line, sizeof(line)) <= 0)
		return 0;
	for (size_t i = 0;; i++) {
		char c = line[i];

		if (c == '"')
			quoted = !quoted;
		if (c && (quoted || !isspace((unsigned char)c))) {
			if (!in_word)
				start = i;
			in_word = true;
			continue;
		}
		if (in_word) {
			if (after)
				words++;
			else if (i - start == 2 && line[start] == '-' && line[start + 1] == '-')
				after = true;
		}
		in_word = false;
		if (!c)
			return words;
	}
}

/* Without a runner, words after "--" replace the program's arguments, and NAME=value that the kernel does not know
 * (it hands them to init as environment) add to its environment. */
static void take_command_line(int argc, char **argv, char **envp)
{
	struct section *program = NULL;
	int words = words_after_dashes();

	for (size_t i = 0; i < config.count && !program; i++)
		if (config.sections[i].kind == PROGRAM)
			program = &config.sections[i];
	if (program && words > 0 && words < argc) {
		if (!program->args.count)
			append(&program->args, program->name);
		if ((size_t)program->keep < program->args.count)
			program->args.count = (size_t)program->keep;
		for (int i = argc - words; i < argc; i++)
			append(&program->args, argv[i]);
	}
	for (; *envp; envp++)
		if (strncmp(*envp, "HOME=", 5) && strncmp(*envp, "TERM=", 5) && strncmp(*envp, "BOOT_IMAGE=", 11))
			put_env(&config.env, *envp);
}

static int open_port(const char *wanted)
{
	DIR *dir = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	char path[512], name[64];
	int fd = -1;

	if (!dir)
		return -1;
	while (fd < 0 && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
		if (entry->d_name[0] == '.' || read_file(path, name, sizeof(name)) <= 0)
			continue;
		name[strcspn(name, "\n")] = '\0';
		if (strcmp(name, wanted))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
	closedir(dir);
	return fd;
}

/* The ports for commands beside the program; how many there are. */
static int open_command_ports(void)
{
	char name[] = COMMAND_PORT "0";
	int count = 0;

	for (int i = 0; i < COMMAND_PORTS; i++) {
		name[sizeof(name) - 2] = (char)('0' + i);
		command_ports[i].fd = open_port(name);
		count += command_ports[i].fd >= 0;
	}
	return count;
}

/* The runner's message; false when nobody is at the other end or says anything. */
static bool config_from_port(void)
{
	size_t size = 65536, used = 0;
	char *buffer = need(malloc(size));
	int64_t deadline = now() + PORT_WAIT_MS;

	print(port, "{\"ready\":1,\"commands\":%d}\n", open_command_ports());
	for (;;) {
		struct pollfd p = { .fd = port, .events = POLLIN };
		int64_t left = deadline - now();
		ssize_t got;

		if (used >= 1 && buffer[used - 1] == '\0' && (used == 1 || buffer[used - 2] == '\0'))
			break;
		if (used + 1 >= size) {
			if (size >= CONFIG_MAX)
				fatal("too large:", "run configuration", 0);
			buffer = need(realloc(buffer, size *= 2));
		}
		if (left <= 0 || poll(&p, 1, (int)left) == 0) {
			if (used)
				fatal("incomplete:", "run configuration", 0);
			return false;
		}
		/* One byte at a time past the end of the message would be lost to the commands that follow: the
		 * runner sends those only after it has seen "begin". */
		got = read(port, buffer + used, size - 1 - used);
		if (got < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (got <= 0)
			return false; /* no runner */
		used += (size_t)got;
	}
	take_config(buffer, used);
	return true;
}

static void config_from_file(void)
{
	struct stat st;
	char *buffer;
	ssize_t length;

	if (stat(RUN_CONF, &st) || st.st_size > (off_t)CONFIG_MAX)
		fatal("no run configuration: neither from a runner nor in", RUN_CONF, 0);
	buffer = need(malloc((size_t)st.st_size + 1));
	length = read_file(RUN_CONF, buffer, (size_t)st.st_size + 1);
	if (length < 0)
		fatal("cannot read", RUN_CONF, errno);
	take_config(buffer, (size_t)length);
}

/* ---- programs -------------------------------------------------------------------------------------------------- */

static void run_child(struct section *s, char **argv, char **envp, int failure) __attribute__((noreturn));
static void run_child(struct section *s, char **argv, char **envp, int failure)
{
	const char *dir = s->workdir ? s->workdir : config.workdir ? config.workdir : "/";
	char path[4200];
	sigset_t none;
	int error;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	snprintf(path, sizeof(path), "%s%s", strchr(s->name, '/') ? "" : "/ukl/", s->name);
	if (chdir(dir) == 0)
		execve(path, argv, envp);
	error = errno;
	write_all(failure, (const char *)&error, sizeof(error));
	_exit(127);
}

/* Start it; a program that cannot be executed is fatal, since nothing else would ever say why. */
static void start(struct section *s, pid_t program)
{
	struct list env = { 0 };
	char pid_text[40];
	int pipes[2], error = 0;

	if (!s->args.count)
		append(&s->args, s->name);
	for (size_t i = 0; i < config.env.count; i++)
		put_env(&env, config.env.items[i]);
	for (size_t i = 0; i < s->env.count; i++)
		put_env(&env, s->env.items[i]);
	if (program) {
		snprintf(pid_text, sizeof(pid_text), "UKLIMG_PID=%d", (int)program);
		put_env(&env, pid_text);
	}
	if (!env.items)
		env.items = need(calloc(1, sizeof(*env.items)));
	if (pipe2(pipes, O_CLOEXEC))
		fatal("no pipe for", s->name, errno);
	if (config.markers)
		print(STDOUT_FILENO, "@@BEGIN %s\n", plain(s->label));
	print(port, "{\"begin\":\"%s\"}\n", plain(s->label));
	s->pid = fork();
	if (s->pid == 0)
		run_child(s, s->args.items, env.items, pipes[1]);
	if (s->pid < 0)
		fatal("cannot fork for", s->name, errno);
	close(pipes[1]);
	if (read(pipes[0], &error, sizeof(error)) == sizeof(error))
		fatal("cannot execute", s->name, error);
	close(pipes[0]);
	free(env.items);
	s->deadline = s->timeout ? now() + s->timeout * 1000 : 0;
}

static void ended(struct section *s, int status)
{
	const char *how = WIFSIGNALED(status) ? "signal" : "exit";
	int value = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);

	kill(-s->pid, SIGKILL); /* what it left in its session */
	s->pid = 0;
	if (config.markers)
		print(STDOUT_FILENO, "@@END %s %s %d%s\n", plain(s->label), how, value, s->timed_out ? " timeout" : "");
	print(port, "{\"end\":\"%s\",\"%s\":%d%s}\n", plain(s->label), how, value,
	      s->timed_out ? ",\"timeout\":true" : "");
	/* Ended as a helper wanted: no failure. */
	if (s->kind == PROGRAM && stopped_by_helper && WIFSIGNALED(status) && value == config.stop_signal)
		return;
	if (!first_failure)
		first_failure = status;
}

static void request_stop(long grace)
{
	stopping = true;
	if (!kill_at || now() + grace * 1000 < kill_at)
		kill_at = now() + grace * 1000 + 1;
	for (size_t i = 0; i < config.count; i++)
		if (config.sections[i].pid > 0)
			kill(config.sections[i].pid,
			     config.sections[i].kind == PROGRAM ? (int)config.stop_signal : SIGTERM);
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (int i = 0; i < COMMAND_PORTS; i++)
			if (command_ports[i].pid == pid)
				command_ports[i].pid = 0;
		for (size_t i = 0; i < config.count; i++)
			if (config.sections[i].pid == pid) {
				ended(&config.sections[i], status);
				if (config.sections[i].kind == BESIDE && config.sections[i].stop && !stopping) {
					stopped_by_helper = true;
					request_stop(config.grace);
				}
			}
	}
}

static void check_deadlines(void)
{
	int64_t time = now();

	for (size_t i = 0; i < config.count; i++) {
		struct section *s = &config.sections[i];

		if (s->pid <= 0)
			continue;
		if (s->deadline && time >= s->deadline) {
			s->timed_out = true;
			s->deadline = 0;
			kill(s->pid, SIGKILL);
		}
		if (kill_at && time >= kill_at)
			kill(s->pid, SIGKILL);
	}
	if (kill_at && time >= kill_at)
		kill_at = time + 1000; /* a program started in between must not escape */
}

/* Milliseconds until something is due, -1 for never. */
static int next_deadline(void)
{
	int64_t next = kill_at, left;

	for (size_t i = 0; i < config.count; i++)
		if (config.sections[i].pid > 0 && config.sections[i].deadline &&
		    (!next || config.sections[i].deadline < next))
			next = config.sections[i].deadline;
	if (!next)
		return -1;
	left = next - now();
	return left < 0 ? 0 : left > 1000000 ? 1000000 : (int)left;
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

/* Commands after the configuration, each "key=value" NUL NUL: stop=SECONDS. */
static void read_commands(struct pollfd *p)
{
	static char buffer[256];
	static size_t used;
	char *end;
	ssize_t got = read(port, buffer + used, sizeof(buffer) - used);

	if (got <= 0) {
		if (got == 0 || (errno != EAGAIN && errno != EINTR))
			p->fd = -1; /* the runner is gone; the program runs on */
		return;
	}
	used += (size_t)got;
	while ((end = memchr(buffer, '\0', used))) {
		size_t size = (size_t)(end - buffer) + 1;

		if (!strncmp(buffer, "stop=", 5))
			request_stop(number(buffer + 5, 0, 86400, "stop"));
		memmove(buffer, buffer + size, used -= size);
	}
	if (used == sizeof(buffer))
		used = 0; /* not a command of ours */
}

static void read_signals(int fd)
{
	struct signalfd_siginfo info;

	while (read(fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGCHLD)
			reap();
		else
			request_stop(config.grace);
	}
}

/* The ACPI power button and its like arrive as input events. */
static void read_input(struct pollfd *p)
{
	struct input_event event;
	ssize_t got;

	while ((got = read(p->fd, &event, sizeof(event))) == sizeof(event))
		if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
			request_stop(config.grace);
	if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
		p->fd = -1;
}

static nfds_t open_inputs(struct pollfd *fds)
{
	nfds_t count = 0;
	char path[32];

	for (int i = 0; i < 32 && count < INPUTS_MAX; i++) {
		snprintf(path, sizeof(path), "/dev/input/event%d", i);
		fds[count].fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		fds[count].events = POLLIN;
		if (fds[count].fd >= 0)
			count++;
	}
	return count;
}

/* A child serves the command, so that neither it nor a slow reader holds us up. */
static void begin_command(int i)
{
	pid_t pid = fork();

	if (pid == 0)
		serve_command(command_ports[i].fd, config.env.items, config.workdir ? config.workdir : "/");
	if (pid > 0)
		command_ports[i].pid = pid;
	else
		command_ports[i].fd = -1;
}

static void poll_commands(struct pollfd *fds)
{
	for (int i = 0; i < COMMAND_PORTS; i++) {
		fds[i].fd = command_ports[i].pid ? -1 : command_ports[i].fd;
		fds[i].events = POLLIN;
	}
}

static bool waiting_for(const struct section *program)
{
	if (program->pid > 0)
		return true;
	for (size_t i = 0; i < config.count; i++)
		if (config.sections[i].kind == BESIDE && config.sections[i].wait && config.sections[i].pid > 0)
			return true;
	return false;
}

static bool last_program(size_t index)
{
	for (size_t i = index + 1; i < config.count; i++)
		if (config.sections[i].kind == PROGRAM)
			return false;
	return true;
}

static void run_programs(int signals)
{
	struct pollfd fds[2 + COMMAND_PORTS + INPUTS_MAX] = { { .fd = signals, .events = POLLIN },
							      { .fd = port, .events = POLLIN } };
	nfds_t inputs = 2 + COMMAND_PORTS, count = inputs + open_inputs(fds + inputs);
	bool helpers = false, any = false;

	for (size_t i = 0; i < config.count && !stopping; i++) {
		struct section *s = &config.sections[i];

		if (s->kind != PROGRAM)
			continue;
		any = true;
		start(s, 0);
		for (size_t j = 0; j < config.count && !helpers; j++)
			if (config.sections[j].kind == BESIDE)
				start(&config.sections[j], s->pid);
		helpers = true;
		while (last_program(i) ? waiting_for(s) : s->pid > 0) {
			poll_commands(fds + 2);
			if (poll(fds, count, next_deadline()) > 0) {
				if (fds[0].revents)
					read_signals(signals);
				if (fds[1].revents)
					read_commands(&fds[1]);
				for (int j = 0; j < COMMAND_PORTS; j++) {
					if (fds[2 + j].revents & POLLIN)
						begin_command(j);
					else if (fds[2 + j].revents)
						command_ports[j].fd = -1; /* nobody is at the other end */
				}
				for (nfds_t j = inputs; j < count; j++)
					if (fds[j].revents)
						read_input(&fds[j]);
			}
			check_deadlines();
		}
	}
	if (!any)
		fatal("no program in the", "run configuration", 0);
}

static int block_signals(void)
{
	static const int wanted[] = { SIGCHLD, SIGTERM, SIGINT, SIGPWR, SIGUSR1, SIGUSR2, SIGHUP };
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
		sigaddset(&set, wanted[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	reboot(RB_DISABLE_CAD); /* Ctrl-Alt-Del becomes SIGINT */
	return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* ---- the end --------------------------------------------------------------------------------------------------- */

/* Orphans and helpers: asked, then made to go. */
static void end_leftovers(void)
{
	int64_t deadline = now() + LEFTOVER_MS;

	if (kill(-1, SIGTERM) == 0)
		while (now() < deadline) {
			pid_t pid = waitpid(-1, NULL, WNOHANG);

			if (pid < 0)
				break;
			if (pid == 0)
				usleep(5000);
		}
	kill(-1, SIGKILL);
	for (deadline = now() + LEFTOVER_MS; now() < deadline && waitpid(-1, NULL, WNOHANG) >= 0;)
		usleep(1000);
}

static void unmount_volumes(void)
{
	sync();
	for (size_t i = config.count; i-- > 0;)
		if (config.sections[i].kind == MOUNT)
			umount2(config.sections[i].name, 0);
}

static void report(int status)
{
	/* The final message must be with the runner before the power goes: a blocking write returns when the host
	 * has taken the buffer. */
	if (port >= 0)
		fcntl(port, F_SETFL, fcntl(port, F_GETFL) & ~O_NONBLOCK);
	if (WIFSIGNALED(status)) {
		const char *name = sigabbrev_np(WTERMSIG(status));

		print(STDOUT_FILENO, "uklimg: signal %d (%s%s)\n", WTERMSIG(status), name ? "SIG" : "real-time",
		      name ? name : "");
		print(port, "{\"signal\":%d}\n", WTERMSIG(status));
	} else {
		print(STDOUT_FILENO, "uklimg: exit %d\n", WEXITSTATUS(status));
		print(port, "{\"exit\":%d}\n", WEXITSTATUS(status));
	}
	tcdrain(STDOUT_FILENO);
}

/* Whether the firmware offers a way to switch off: without one the kernel would halt instead, for ever. ACPI 6.5,
 * table 5.9 (FADT): flags at 112 (bit 20: hardware-reduced), PM1a_CNT_BLK at 64, X_PM1a_CNT_BLK's address at 176,
 * SLEEP_CONTROL_REG's address at 248. */
static bool can_power_off(void)
{
	unsigned char table[276] = { 0 };
	uint32_t flags, pm1a;
	uint64_t x_pm1a, sleep_control;

	if (read_file("/sys/firmware/acpi/tables/FACP", (char *)table, sizeof(table)) < 116)
		return false;
	memcpy(&flags, table + 112, sizeof(flags));
	memcpy(&pm1a, table + 64, sizeof(pm1a));
	memcpy(&x_pm1a, table + 176, sizeof(x_pm1a));
	memcpy(&sleep_control, table + 248, sizeof(sleep_control));
	return flags & (1u << 20) ? sleep_control != 0 : pm1a || x_pm1a;
}

static void power_off(void) __attribute__((noreturn));
static void power_off(void)
{
	sync();
	if (can_power_off())
		reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT); /* a runner starts us with -no-reboot or its like */
	for (;;)
		pause();
}

static void finish(void)
{
	static bool again;

	if (getpid() != 1)
		_exit(OWN_FAILURE);
	if (!again) {
		again = true;
		end_leftovers();
		unmount_volumes();
		report(first_failure);
	}
	power_off();
}

int main(int argc, char **argv, char **envp)
{
	int signals;

	if (getpid() != 1) {
		fputs("uklimg init: I only work as process 1\n", stderr);
		return 1;
	}
	umask(022);
	for (int i = 0; i < COMMAND_PORTS; i++)
		command_ports[i].fd = -1;
	mount_system();
	open_console();
	signals = block_signals();
	raise_limits();
	loopback_up();
	write_resolv_conf();
	port = open_port(PORT_NAME);
	if (port < 0 || !config_from_port()) {
		config_from_file();
		take_command_line(argc, argv, envp);
	}
	if (config.raw_console)
		set_raw_console();
	if (config.hostname)
		sethostname(config.hostname, strlen(config.hostname));
	mount_volumes();
	run_programs(signals);
	finish();
}
