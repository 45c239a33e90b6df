# SPDX-License-Identifier: Apache-2.0
#
# The beginning of every application's code, to which a kernel with UKL_RET jumps in order to return to the application:
# on its stack, below the red zone, lie its flags and the address. The kernel knows these bytes.
	.section .ukl_ret, "ax", @progbits
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
	.section .note.GNU-stack, "", @progbits
