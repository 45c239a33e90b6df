/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The attack program: an ordinary ring-3 program that tries every way to become UKL, that is, to run anything at CPL 0.
 *
 * Each attempt is a function run in a child of its own. The attempt is refused unless the child *proves* an escape by
 * calling escaped(): a refused attempt may fail with an error, be killed by a signal, or simply go on at CPL 3.
 */
#ifndef ATTACK_H
#define ATTACK_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define NOBODY 65534
#define EFLAGS_AC 0x40000u
#define EFLAGS_TF 0x100u

/* Status of a process started with UKL_PROBE in its environment (programs/beside.c, and this program itself). */
#define PROBE_CPL0 42
#define PROBE_CPL3 43

/* Where an attempt tries to get to. */
struct goal {
	const char *name;
	uintptr_t at;
	int kernel; /* in the kernel's half */
};

enum { GOAL_OWN, GOAL_APP, GOAL_FUNCTION, GOAL_TEXT, GOALS };
extern struct goal goals[GOALS];

/* What main found out: the UKL process beside us, the path by which it is executed, a place for files, our own path. */
struct surroundings {
	pid_t victim;
	int ukl; /* the victim is the application */
	uintptr_t app_return, app_cpl; /* harmless functions of the application's text */
	char stub[256], folder[256], self[256];
};
extern struct surroundings here;

typedef void attempt_fn(long argument);

/* Run one attempt in a child, as root or as NOBODY, and print its line. */
void try_it(attempt_fn *run, long argument, const char *format, ...) __attribute__((format(printf, 3, 4)));
void try_as_nobody(attempt_fn *run, long argument, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Within an attempt. escaped() is the proof and does not return; note() is shown by -v beside a refusal. */
void escaped(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void become_nobody(void);
void drop_rawio(void); /* the capability that starts and traces the application */

/* A system call that must fail: success is the escape. */
#define MUST_FAIL(call)                                                                                                    \
	do {                                                                                                               \
		long attack_result = (long)(call);                                                                         \
		if (attack_result != -1)                                                                                   \
			escaped("%s gave %ld", #call, attack_result);                                                      \
		note("%s: errno %d", #call, errno);                                                                        \
	} while (0)

/* probe.c: code that says at which level it runs, and faults looked at for traces of an escape. */
void probe_setup(void);                          /* fault handlers on an alternate stack; done for each attempt */
void probe_aim(const struct goal *goal);         /* what the next transfer of control is meant to reach */
uintptr_t probe_stack(void);                     /* a stack whose every slot is the address of probe_landing */
void probe_entry(void);                          /* the own code to be reached with a forged segment */
void probe_landing(void);                        /* where a kernel function that was reached returns to */
unsigned probe_cpl(void);                        /* this moment's CPL */
void probe_privileged(void);                     /* escaped() when any privileged instruction works */
int probe_guarded(void (*run)(void *), void *argument); /* 0, or the signal that run() raised */

/* The attempts, a file each. */
void cpu_attempts(void);
void odd_attempts(void);
void frames_attempts(void);
void tracing_attempts(void);
void memory_attempts(void);
void victim_attempts(void);
void execs_attempts(void);

#endif
