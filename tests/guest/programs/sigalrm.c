/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timer interrupts and SIGALRM, thousands of times, into code that has everything live: the red zone, all general registers, the
 * direction flag, ymm (or xmm) registers, MXCSR and the x87 stack. Two processes on one CPU do so at once, so that every
 * switch has something to lose; the handler dirties all it can.
 *
 * The loops are assembly: only there is it known what is live. Usage: sigalrm [signals]
 */
#include "uklcheck.h"

#include <sched.h>
#include <sys/time.h>

#define DEFAULT_SIGNALS 3000
#define INTERVAL_US 400
#define DEADLINE_MS 300000

struct image {
	/* What the loop loads and compares: 16 values of 32 bytes for the vectors; 16 words for the red zone. */
	uint64_t vector[16][4];
	uint64_t zone[16];
} __attribute__((aligned(32)));

/* Each spins until *stop or a mismatch. 0: nothing was lost; otherwise which part was (see the source). */
uint64_t spin_zone(volatile uint32_t *stop, const uint64_t zone[16]);
uint64_t spin_registers(volatile uint32_t *stop, uint64_t seed);
uint64_t spin_ymm(volatile uint32_t *stop, const uint64_t vector[16][4]);
uint64_t spin_xmm(volatile uint32_t *stop, const uint64_t vector[16][4]);
uint64_t spin_x87(volatile uint32_t *stop, const uint32_t *mxcsr);
void dirty_ymm(void);
void dirty_xmm(void);

/* The red zone is the 128 bytes below rsp: fill, wait, compare, for ever; a leaf, so that nothing else writes there. */
__asm__(".text\n"
	".p2align 4\n"
	".globl spin_zone\n"
	".type spin_zone, @function\n"
	"spin_zone:\n"
	"1:	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	mov 8*\\i(%rsi), %rax\n"
	"	mov %rax, -8*(\\i+1)(%rsp)\n"
	"	.endr\n"
	"	mov $200, %ecx\n"
	"2:	pause\n"
	"	dec %ecx\n"
	"	jnz 2b\n"
	"	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	mov 8*\\i(%rsi), %rax\n"
	"	cmp %rax, -8*(\\i+1)(%rsp)\n"
	"	jne 3f\n"
	"	.endr\n"
	"	cmpl $0, (%rdi)\n"
	"	je 1b\n"
	"	xor %eax, %eax\n"
	"	ret\n"
	"3:	mov $1, %eax\n"
	"	ret\n"
	".size spin_zone, .-spin_zone\n");

/* rcx and r11 are what syscall/sysret destroy: an interrupt must not. DF and CF stay set all the time. */
__asm__(".text\n"
	".p2align 4\n"
	".globl spin_registers\n"
	".type spin_registers, @function\n"
	"spin_registers:\n"
	"	push %rbx\n	push %rbp\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
	"	std\n"
	"1:	lea 1(%rsi), %rax\n	lea 2(%rsi), %rbx\n	lea 3(%rsi), %rcx\n	lea 4(%rsi), %rdx\n	lea 5(%rsi), %rbp\n"
	"	lea 6(%rsi), %r8\n	lea 7(%rsi), %r9\n	lea 8(%rsi), %r10\n	lea 9(%rsi), %r11\n	lea 10(%rsi), %r12\n"
	"	lea 11(%rsi), %r13\n	lea 12(%rsi), %r14\n	lea 13(%rsi), %r15\n"
	"	stc\n"
	"	.rept 300\n	pause\n	.endr\n"
	"	jnc 2f\n"
	"	sub %rsi, %rax\n	cmp $1, %rax\n	jne 2f\n"
	"	sub %rsi, %rbx\n	cmp $2, %rbx\n	jne 2f\n"
	"	sub %rsi, %rcx\n	cmp $3, %rcx\n	jne 2f\n"
	"	sub %rsi, %rdx\n	cmp $4, %rdx\n	jne 2f\n"
	"	sub %rsi, %rbp\n	cmp $5, %rbp\n	jne 2f\n"
	"	sub %rsi, %r8\n	cmp $6, %r8\n	jne 2f\n"
	"	sub %rsi, %r9\n	cmp $7, %r9\n	jne 2f\n"
	"	sub %rsi, %r10\n	cmp $8, %r10\n	jne 2f\n"
	"	sub %rsi, %r11\n	cmp $9, %r11\n	jne 2f\n"
	"	sub %rsi, %r12\n	cmp $10, %r12\n	jne 2f\n"
	"	sub %rsi, %r13\n	cmp $11, %r13\n	jne 2f\n"
	"	sub %rsi, %r14\n	cmp $12, %r14\n	jne 2f\n"
	"	sub %rsi, %r15\n	cmp $13, %r15\n	jne 2f\n"
	"	pushf\n	pop %rax\n	test $0x400, %eax\n	jz 2f\n"
	"	cmpl $0, (%rdi)\n"
	"	je 1b\n"
	"	xor %eax, %eax\n"
	"	jmp 3f\n"
	"2:	mov $2, %eax\n"
	"3:	cld\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n	pop %rbx\n"
	"	ret\n"
	".size spin_registers, .-spin_registers\n");

/* Register 15 is the scratch of the comparison, so 15 registers are live; the values are reloaded only at the start. */
__asm__(".text\n"
	".p2align 4\n"
	".globl spin_ymm\n"
	".type spin_ymm, @function\n"
	"spin_ymm:\n"
	"	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14\n"
	"	vmovdqu 32*\\i(%rsi), %ymm\\i\n"
	"	.endr\n"
	"1:	mov $100, %ecx\n"
	"2:	pause\n"
	"	dec %ecx\n"
	"	jnz 2b\n"
	"	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14\n"
	"	vxorps 32*\\i(%rsi), %ymm\\i, %ymm15\n"
	"	vptest %ymm15, %ymm15\n"
	"	jnz 3f\n"
	"	.endr\n"
	"	cmpl $0, (%rdi)\n"
	"	je 1b\n"
	"	vzeroupper\n"
	"	xor %eax, %eax\n"
	"	ret\n"
	"3:	vzeroupper\n"
	"	mov $3, %eax\n"
	"	ret\n"
	".size spin_ymm, .-spin_ymm\n"
	".p2align 4\n"
	".globl spin_xmm\n"
	".type spin_xmm, @function\n"
	"spin_xmm:\n"
	"	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14\n"
	"	movdqu 32*\\i(%rsi), %xmm\\i\n"
	"	.endr\n"
	"1:	mov $100, %ecx\n"
	"2:	pause\n"
	"	dec %ecx\n"
	"	jnz 2b\n"
	"	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14\n"
	"	movdqu 32*\\i(%rsi), %xmm15\n"
	"	pcmpeqb %xmm\\i, %xmm15\n"
	"	pmovmskb %xmm15, %eax\n"
	"	cmp $0xffff, %eax\n"
	"	jne 3f\n"
	"	.endr\n"
	"	cmpl $0, (%rdi)\n"
	"	je 1b\n"
	"	xor %eax, %eax\n"
	"	ret\n"
	"3:	mov $4, %eax\n"
	"	ret\n"
	".size spin_xmm, .-spin_xmm\n");

/* pi and 1 stay on the x87 stack and an odd MXCSR (round up, flush to zero) is in force. */
__asm__(".text\n"
	".p2align 4\n"
	".globl spin_x87\n"
	".type spin_x87, @function\n"
	"spin_x87:\n"
	"	sub $24, %rsp\n"
	"	stmxcsr 8(%rsp)\n"
	"	ldmxcsr (%rsi)\n"
	"	fldpi\n	fld1\n"
	"1:	mov $200, %ecx\n"
	"2:	pause\n"
	"	dec %ecx\n"
	"	jnz 2b\n"
	"	stmxcsr 12(%rsp)\n"
	"	mov 12(%rsp), %eax\n"
	"	cmp (%rsi), %eax\n"
	"	jne 3f\n"
	"	fld1\n	fcomip %st(1), %st\n	jne 3f\n	jp 3f\n"
	"	fldpi\n	fcomip %st(2), %st\n	jne 3f\n	jp 3f\n"
	"	cmpl $0, (%rdi)\n"
	"	je 1b\n"
	"	xor %eax, %eax\n"
	"	jmp 4f\n"
	"3:	mov $5, %eax\n"
	"4:	fninit\n"
	"	ldmxcsr 8(%rsp)\n"
	"	add $24, %rsp\n"
	"	ret\n"
	".size spin_x87, .-spin_x87\n");

__asm__(".text\n"
	".globl dirty_ymm\n"
	".type dirty_ymm, @function\n"
	"dirty_ymm:\n"
	"	vpcmpeqd %xmm0, %xmm0, %xmm0\n"
	"	vinsertf128 $1, %xmm0, %ymm0, %ymm0\n"
	"	.irp i, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	vmovaps %ymm0, %ymm\\i\n"
	"	.endr\n"
	"	ret\n"
	".size dirty_ymm, .-dirty_ymm\n"
	".globl dirty_xmm\n"
	".type dirty_xmm, @function\n"
	"dirty_xmm:\n"
	"	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	pcmpeqd %xmm\\i, %xmm\\i\n"
	"	.endr\n"
	"	ret\n"
	".size dirty_xmm, .-dirty_xmm\n");

static volatile uint32_t stop;
static volatile uint32_t signals, wanted;
static int have_avx;
static long long deadline;

static void on_alarm(int number, siginfo_t *info, void *context)
{
	unsigned long flags;
	uint32_t odd_mxcsr = 0x1f80, mxcsr;

	(void)number;
	(void)info;
	(void)context;
	__asm__ volatile("pushf\n\tpop %0" : "=r"(flags));
	if (flags & 0x400)
		ukl_fail("a handler starts with the direction flag set");
	ukl_check_mode();
	__asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
	__asm__ volatile("ldmxcsr %0\n\tfninit" : : "m"(odd_mxcsr));
	if (have_avx)
		dirty_ymm();
	else
		dirty_xmm();
	if (++signals >= wanted)
		stop = 1;
	else if (signals % 256 == 0 && ukl_now_ms() > deadline)
		ukl_fail("%u of %u signals in %d ms", signals, wanted, DEADLINE_MS);
}

static void fill(struct image *image, uint64_t seed)
{
	for (int i = 0; i < 16; i++) {
		for (int j = 0; j < 4; j++)
			image->vector[i][j] = ukl_random(&seed) << 16 | ukl_random(&seed) >> 32;
		image->zone[i] = ukl_random(&seed) << 20 ^ ukl_random(&seed);
	}
}

static uint64_t spin(int kind, const struct image *image)
{
	static const uint32_t mxcsr = 0xdf80; /* all masked, round up, flush to zero */

	/* In this order: an alarm between them would set stop again, for what the last loop counted. */
	signals = 0;
	stop = 0;
	switch (kind) {
	case 0:
		return spin_zone(&stop, image->zone);
	case 1:
		return spin_registers(&stop, image->zone[3] | 1);
	case 2:
		return have_avx ? spin_ymm(&stop, image->vector) : spin_xmm(&stop, image->vector);
	default:
		return spin_x87(&stop, &mxcsr);
	}
}

static void all_loops(uint64_t seed)
{
	struct itimerval every = {{0, INTERVAL_US}, {0, INTERVAL_US}}, never = {{0, 0}, {0, 0}};
	struct image image;

	ukl_handle_info(SIGALRM, on_alarm, SA_RESTART);
	SYS(setitimer(ITIMER_REAL, &every, NULL));
	for (int kind = 0; kind < 4; kind++) {
		uint64_t lost;

		fill(&image, seed + (uint64_t)kind);
		lost = spin(kind, &image);
		if (lost)
			ukl_fail("loop %d lost its state (code %llu) after %u signals", kind, (unsigned long long)lost, signals);
		CHECK(signals >= wanted);
	}
	SYS(setitimer(ITIMER_REAL, &never, NULL));
}

/* An ordinary system call in the loop, interrupted and restarted all the time. */
static void system_calls(void)
{
	struct itimerval every = {{0, INTERVAL_US}, {0, INTERVAL_US}}, never = {{0, 0}, {0, 0}};
	uint64_t rounds = 0;
	int ends[2];

	SYS(pipe(ends));
	stop = 0;
	signals = 0;
	SYS(setitimer(ITIMER_REAL, &every, NULL));
	while (!stop) {
		uint64_t seen = 0;

		CHECK_EQ(write(ends[1], &rounds, sizeof rounds), sizeof rounds);
		CHECK_EQ(read(ends[0], &seen, sizeof seen), sizeof seen);
		CHECK(seen == rounds);
		rounds++;
	}
	SYS(setitimer(ITIMER_REAL, &never, NULL));
	CHECK(rounds > 0);
	SYS(close(ends[0]));
	SYS(close(ends[1]));
}

int main(int argc, char **argv)
{
	cpu_set_t cpus;
	pid_t child;

	ukl_begin("sigalrm");
	wanted = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : DEFAULT_SIGNALS;
	wanted /= 5;
	CHECK(wanted > 0);
	have_avx = __builtin_cpu_supports("avx") != 0;
	deadline = ukl_now_ms() + DEADLINE_MS;
	CPU_ZERO(&cpus);
	SYS(sched_getaffinity(0, sizeof cpus, &cpus));
	for (int cpu = CPU_SETSIZE - 1, kept = 0; cpu >= 0; cpu--) {
		/* Both processes on the last CPU there is. */
		if (CPU_ISSET(cpu, &cpus) && kept++)
			CPU_CLR(cpu, &cpus);
	}
	SYS(sched_setaffinity(0, sizeof cpus, &cpus));

	child = (pid_t)SYS(fork());
	all_loops(child ? 1000 : 2000);
	system_calls();
	if (child == 0)
		_exit(0);
	ukl_wait_exit(child, 0);
	printf("two processes, %u signals into each of 5 loops: red zone, registers, vectors, x87, system calls intact\n", wanted);
	return ukl_end();
}
