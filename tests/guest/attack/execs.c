/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exec: only the root-owned stub file, executed by one who may, becomes UKL. Forged stubs, detours to the real one, and ELF files that
 * ask for what the loader does for the application alone.
 *
 * Everything is executed with UKL_PROBE in the environment, which makes programs/beside.c (and this program) tell at which level
 * it runs by its exit status.
 */
#include "attack.h"

#include <elf.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <time.h>

#define STUB_MAGIC "\177UKL1\n"

/* UKL_PROGRAM is for an executable that holds all guest programs: the stub must then be `beside`, or it tells nothing. */
static char *const probing[] = {"UKL_PROBE=1", "UKL_PROGRAM=beside", NULL};

static const char *stub_name(void)
{
	const char *slash = strrchr(here.stub, '/');

	return slash ? slash + 1 : here.stub;
}

static const char *scratch(char path[600], const char *name)
{
	snprintf(path, 600, "%s/%s", here.folder, name);
	return path;
}

static void write_file(const char *path, const void *bytes, size_t length, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);

	if (fd < 0 || write(fd, bytes, length) != (ssize_t)length || fchmod(fd, mode) != 0) {
		note("%s: errno %d", path, errno);
		_exit(2);
	}
	close(fd);
}

static size_t stub_bytes(char bytes[600])
{
	return (size_t)snprintf(bytes, 600, STUB_MAGIC "%s\n", stub_name());
}

static void write_stub(const char *path, mode_t mode)
{
	char bytes[600];

	write_file(path, bytes, stub_bytes(bytes), mode);
}

/* What became of a child that executed something. */
static void judge_child(pid_t child)
{
	int status = 0;

	while (waitpid(child, &status, 0) != child)
		;
	if (WIFEXITED(status) && WEXITSTATUS(status) == PROBE_CPL0)
		escaped("it runs at CPL 0");
	if (WIFSIGNALED(status))
		note("killed by SIG%s", sigabbrev_np(WTERMSIG(status)));
	else
		note("status %d", WEXITSTATUS(status));
}

static void execute(const char *path)
{
	char *const arguments[] = {(char *)path, "x", NULL};
	pid_t child = fork();

	if (child == 0) {
		execve(path, arguments, probing);
		note("execve: errno %d", errno);
		_exit(0);
	}
	judge_child(child);
}

static void execute_descriptor(int fd)
{
	char *const arguments[] = {"stub", NULL};
	pid_t child = fork();

	if (child == 0) {
		syscall(SYS_execveat, fd, "", arguments, probing, AT_EMPTY_PATH);
		note("execveat: errno %d", errno);
		_exit(0);
	}
	judge_child(child);
}

static void own_stub(long mode)
{
	char path[600];

	write_stub(scratch(path, "forged.stub"), (mode_t)mode);
	execute(path);
	unlink(path);
}

/* Made by nobody, executed by root: root's shell in a folder of nobody's must not start it either. */
static void root_runs_forged(long unused)
{
	char path[600];

	(void)unused;
	write_stub(scratch(path, "forged.stub"), 0755);
	if (chown(path, NOBODY, NOBODY) != 0)
		_exit(2);
	execute(path);
	unlink(path);
}

static void by_symbolic_link(long unused)
{
	char path[600], link_path[600];

	(void)unused;
	write_stub(scratch(path, "forged.stub"), 0755);
	if (symlink(path, scratch(link_path, stub_name())) != 0)
		_exit(2);
	execute(link_path);
	unlink(link_path);
	unlink(path);
}

static void by_hard_link(long unused)
{
	char path[600], link_path[600];

	(void)unused;
	write_stub(scratch(path, "forged.stub"), 0755);
	if (link(path, scratch(link_path, "hard")) != 0)
		_exit(2);
	execute(link_path);
	unlink(link_path);
	unlink(path);
}

static void by_memory_file(long seal)
{
	char bytes[600], path[64];
	size_t length = stub_bytes(bytes);
	int fd = (int)syscall(SYS_memfd_create, "stub", seal ? 2 /* MFD_ALLOW_SEALING */ : 0);

	if (fd < 0 || write(fd, bytes, length) != (ssize_t)length)
		_exit(2);
	if (seal)
		fcntl(fd, 1033 /* F_ADD_SEALS */, 0xf);
	execute_descriptor(fd);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	execute(path);
}

/* A script whose interpreter is the real stub; and one whose interpreter is a forged one. */
static void by_script(long real)
{
	char path[600], interpreter[600], bytes[700];

	if (real)
		snprintf(interpreter, sizeof interpreter, "%s", here.stub);
	else
		write_stub(scratch(interpreter, "forged.stub"), 0755);
	write_file(scratch(path, "script"), bytes, (size_t)snprintf(bytes, sizeof bytes, "#!%s\n", interpreter), 0755);
	execute(path);
	unlink(path);
	if (!real)
		unlink(interpreter);
}

static void real_stub(long unused)
{
	(void)unused;
	execute(here.stub);
}

static void odd_stubs(long unused)
{
	static const char *const forms[] = {"%s%s", "%s%s\n\n", "%s../ukl/%s\n", "%s%s\n#!/bin/sh\n", "%s%.1s\n", "%s\n%s\n", "%s %s\n"};
	char path[600], bytes[4400];

	(void)unused;
	scratch(path, "odd");
	for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
		write_file(path, bytes, (size_t)snprintf(bytes, sizeof bytes, forms[i], STUB_MAGIC, stub_name()), 0755);
		execute(path);
	}
	/* The magic alone, and a name that fills a page. */
	write_file(path, STUB_MAGIC, 6, 0755);
	execute(path);
	memset(bytes, 'n', sizeof bytes);
	memcpy(bytes, STUB_MAGIC, 6);
	write_file(path, bytes, sizeof bytes, 0755);
	execute(path);
	unlink(path);
}

/* Traced from its start: whoever may write the registers of a UKL process executes anything at CPL 0. */
static void traced_stub(long unused)
{
	struct user_regs_struct regs;
	char *const arguments[] = {here.stub, NULL};
	int status;
	pid_t child = fork();

	(void)unused;
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		execve(here.stub, arguments, probing);
		note("execve: errno %d", errno);
		_exit(0);
	}
	waitpid(child, &status, 0);
	if (WIFSTOPPED(status)) {
		if (ptrace(PTRACE_GETREGS, child, 0, &regs) == 0 && regs.rip >> 63)
			escaped("its registers can be read and written");
		ptrace(PTRACE_CONT, child, 0, 0);
		judge_child(child);
	}
}

/* Started untraced (programs/beside.c runs as long as its command does), then attacked by its own user. */
static void attacked_stub(long unused)
{
	char *const arguments[] = {here.stub, here.self, "--sleep", NULL}, *const environment[] = {"UKL_PROGRAM=beside", NULL};
	pid_t child = fork();
	int status;

	(void)unused;
	if (child == 0) {
		execve(here.stub, arguments, environment);
		note("execve: errno %d", errno);
		_exit(0);
	}
	for (int i = 0; i < 100; i++) {
		struct timespec little = {0, 3000000};
		struct user_regs_struct regs;

		nanosleep(&little, NULL);
		if (waitpid(child, NULL, WNOHANG) != 0)
			return;
		if (ptrace(PTRACE_ATTACH, child, 0, 0) != 0) {
			note("PTRACE_ATTACH: errno %d", errno);
			break;
		}
		waitpid(child, &status, 0);
		if (ptrace(PTRACE_GETREGS, child, 0, &regs) == 0 && regs.rip >> 63)
			escaped("its registers can be read and written");
		ptrace(PTRACE_DETACH, child, 0, 0);
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static char *waiting_argument;

static int execute_waiting(void *path)
{
	char *const arguments[] = {waiting_argument, NULL};

	execve(path, arguments, probing);
	note("execve: errno %d", errno);
	_exit(0);
}

/* The file becomes a stub while exec waits for an argument, which lies in a page that userfaultfd holds back. */
static void stub_while_loading(long unused)
{
	static char stack[65536] __attribute__((aligned(16)));
	char path[600], *room = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.range = {(uintptr_t)room, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct uffdio_copy copy = {.dst = (uintptr_t)room, .src = (uintptr_t)room + 4096, .len = 4096};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct pollfd wait = {fd, POLLIN, 0};
	pid_t child;

	(void)unused;
	drop_rawio();
	if (fd < 0 || room == MAP_FAILED || ioctl(fd, UFFDIO_API, &api) != 0 || ioctl(fd, UFFDIO_REGISTER, &range) != 0) {
		note("userfaultfd: errno %d", errno);
		return;
	}
	write_file(scratch(path, "later.stub"), "nothing yet\n", 12, 0755);
	waiting_argument = room;
	child = clone(execute_waiting, stack + sizeof stack, CLONE_VM | SIGCHLD, path);
	if (poll(&wait, 1, 2000) == 1) {
		char bytes[600];
		int file = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);

		if (file < 0 || write(file, bytes, stub_bytes(bytes)) < 0)
			note("while exec waits: errno %d", errno);
		close(file);
		strcpy(room + 4096, "x");
		ioctl(fd, UFFDIO_COPY, &copy);
	} else {
		note("exec does not wait");
	}
	judge_child(child);
	unlink(path);
}

/* The application's own ELF file, copied by root for the sake of the attempt, executed by nobody. */
static void copied_program(long unused)
{
	char from[64], path[600];
	int in, out, saved;
	pid_t child;

	(void)unused;
	snprintf(from, sizeof from, "/proc/%d/exe", (int)here.victim);
	in = open(from, O_RDONLY | O_CLOEXEC);
	out = open(scratch(path, "copy"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	saved = errno;
	if (in < 0 || out < 0) {
		note("%s: errno %d", from, saved);
		unlink(path);
		return;
	}
	while (sendfile(out, in, NULL, 1 << 20) > 0)
		;
	close(out);
	if (chown(path, NOBODY, NOBODY) != 0 || chmod(path, 0755) != 0)
		_exit(2);
	execute(path); /* by root too: a copy is not the sealed file */
	child = fork();
	if (child == 0) {
		become_nobody();
		execute(path);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	unlink(path);
}

/* ELF files made by hand. */
struct image {
	Elf64_Ehdr header;
	Elf64_Phdr segment[3];
	char interpreter[300];
	unsigned char code[64];
};

enum { ENTRY, SEGMENT, EXEC_SEGMENT, INTERPRETER_STUB, INTERPRETER_PROGRAM, IMAGES };
static const char *const image_name[] = {"entry", "segment", "executable segment", "entry and stub as interpreter",
					 "entry and the application as interpreter"};

static void forged_elf(long argument)
{
	const struct goal *goal = &goals[argument % GOALS];
	struct image image;
	char path[600];
	long kind = argument / GOALS;
	Elf64_Phdr *segment = image.segment;

	memset(&image, 0, sizeof image);
	memcpy(image.header.e_ident, ELFMAG "\2\1\1", 7);
	image.header.e_type = ET_EXEC;
	image.header.e_machine = EM_X86_64;
	image.header.e_version = 1;
	image.header.e_entry = goal->at;
	image.header.e_phoff = offsetof(struct image, segment);
	image.header.e_ehsize = sizeof image.header;
	image.header.e_phentsize = sizeof *segment;
	image.header.e_phnum = 2;
	/* The code tells its level: mov %cs, %edi; and $3, %edi; xor $42, %edi (42 at CPL 0, 41 at 3); exit_group. */
	memcpy(image.code, "\x8c\xcf\x83\xe7\x03\x83\xf7\x2a\xb8\xe7\x00\x00\x00\x0f\x05", 15);
	segment[0] = (Elf64_Phdr){PT_LOAD, PF_R | PF_X, 0, 0x10000000, 0x10000000, sizeof image, sizeof image, 4096};
	segment[1] = (Elf64_Phdr){PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16};
	if (kind == SEGMENT || kind == EXEC_SEGMENT) {
		image.header.e_phnum = 3;
		image.header.e_entry = 0x10000000 + offsetof(struct image, code);
		segment[2] = (Elf64_Phdr){PT_LOAD, PF_R | (kind == SEGMENT ? PF_W : PF_X), 0, goal->at & ~4095ul,
					  goal->at & ~4095ul, sizeof image, sizeof image, 4096};
	} else if (kind == INTERPRETER_STUB || kind == INTERPRETER_PROGRAM) {
		image.header.e_phnum = 3;
		if (kind == INTERPRETER_STUB)
			snprintf(image.interpreter, sizeof image.interpreter, "%s", here.stub);
		else
			snprintf(image.interpreter, sizeof image.interpreter, "/proc/%d/exe", (int)here.victim);
		segment[2] = segment[1];
		segment[1] = segment[0];
		segment[0] = (Elf64_Phdr){PT_INTERP, PF_R, offsetof(struct image, interpreter), 0, 0,
					  strlen(image.interpreter) + 1, strlen(image.interpreter) + 1, 1};
	}
	write_file(scratch(path, "elf"), &image, sizeof image, 0755);
	execute(path);
	unlink(path);
}

static void note_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		note("%s: errno %d", path, errno);
	if (fd >= 0)
		close(fd);
}

/* In a user namespace nobody is root, and may mount file systems on which files belong to that root. */
static void namespace_stub(long unused)
{
	char path[600], map[64];

	(void)unused;
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
		note("unshare: errno %d", errno);
		own_stub(0755);
		return;
	}
	note_to("/proc/self/setgroups", "deny");
	snprintf(map, sizeof map, "0 %d 1", NOBODY);
	note_to("/proc/self/uid_map", map);
	note_to("/proc/self/gid_map", map);
	if (mount("none", here.folder, "tmpfs", 0, NULL) != 0)
		note("mount: errno %d", errno);
	write_stub(scratch(path, "forged.stub"), 0755);
	execute(path);
	chmod(path, 06755);
	execute(path);
	/* The real one from there: this root is nobody. */
	execute(here.stub);
	unlink(path);
}

/* exec of an ordinary program must give an ordinary program, whatever the one before was or pretended. */
static void ordinary_program(long how)
{
	if (how == 1)
		prctl(PR_SET_MM, PR_SET_MM_EXE_FILE, open(here.stub, O_RDONLY), 0, 0);
	if (how == 2)
		syscall(SYS_personality, 0x0fffff00);
	execute(here.self);
}

void execs_attempts(void)
{
	static const char *const before[] = {"", " with another exe file", " with every personality"};

	for (long how = 0; how < 3; how++)
		try_it(ordinary_program, how, "exec of an ordinary program%s", before[how]);
	try_as_nobody(own_stub, 0755, "exec of a forged stub");
	try_as_nobody(own_stub, 06755, "exec of a forged stub, set-id");
	try_it(root_runs_forged, 0, "exec by root of a stub that is not root's");
	try_as_nobody(by_symbolic_link, 0, "exec of a forged stub by a symbolic link");
	try_as_nobody(by_hard_link, 0, "exec of a forged stub by a hard link");
	try_as_nobody(by_memory_file, 0, "exec of a forged stub in a memfd");
	try_as_nobody(by_memory_file, 1, "exec of a forged stub in a sealed memfd");
	try_as_nobody(odd_stubs, 0, "exec of malformed stubs");
	try_as_nobody(by_script, 0, "script with a forged stub as interpreter");
	try_as_nobody(by_script, 1, "script with the real stub as interpreter");
	try_as_nobody(real_stub, 0, "exec of the real stub by an unprivileged user");
	try_as_nobody(traced_stub, 0, "exec of the real stub by an unprivileged user, traced");
	try_as_nobody(attacked_stub, 0, "exec of the real stub by an unprivileged user, then attacked");
	try_as_nobody(namespace_stub, 0, "stubs in a user namespace");
	try_it(stub_while_loading, 0, "exec of a file that becomes a stub meanwhile, by root without CAP_SYS_RAWIO");
	try_it(copied_program, 0, "exec of a copy of the application");
	for (long kind = 0; kind < IMAGES; kind++)
		for (long goal = GOAL_APP; goal < GOALS; goal++) {
			try_as_nobody(forged_elf, kind * GOALS + goal, "ELF file with %s in %s", image_name[kind], goals[goal].name);
			try_it(forged_elf, kind * GOALS + goal, "ELF file with %s in %s, by root", image_name[kind], goals[goal].name);
		}
}
