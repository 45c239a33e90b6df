# SPDX-License-Identifier: Apache-2.0
#
# The beginning of every application's code: what the kernel executes there. It knows these bytes and their places.
	.section .ukl_ret, "ax", @progbits

# A kernel with UKL_RET jumps here in order to return to the application: on its stack, below the red zone, lie its flags
# and the address.
	.globl	__ukl_ret
	.type	__ukl_ret, @function
__ukl_ret:
	.cfi_startproc
	.cfi_signal_frame
	.cfi_def_cfa %rsp, 144
	.cfi_offset %rip, -136
	popfq
	.cfi_def_cfa_offset 136
	ret	$128
	.cfi_endproc
	.size	__ukl_ret, . - __ukl_ret

# System calls that C code called by __ukl_syscall0, 3 and 6 came from here, as far as signal handlers, debuggers and
# restarts are concerned: the address that they return to is on the stack. An oops shows what is before it, too.
	.balign	64, 0xcc
	.globl	__ukl_again
	.type	__ukl_again, @function
__ukl_again:
	.cfi_startproc
	call	*%rcx
	ret
	.cfi_endproc
	.size	__ukl_again, . - __ukl_again
	.section .note.GNU-stack, "", @progbits
