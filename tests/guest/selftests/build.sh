# Build kernel selftests, static, for ring 3: build.sh SOURCE OUT. SOURCE is an unpacked kernel (the tests are its own).
set -eu
source=$1
out=$2

make -C "$source" O=/tmp/headers headers >/dev/null
cd "$source/tools/testing/selftests"

# build NAME SOURCES-AND-OPTIONS
build() {
	name=$1
	shift
	gcc -O2 -w -static -pthread -D_GNU_SOURCE -I/tmp/headers/usr/include -I. -I.. -I../../include -Ifutex/include \
		"$@" -o "$out/$name" -lrt -lm
}

for name in single_step_syscall syscall_nt sigreturn iopl ioperm test_vsyscall mov_ss_trap sigtrap_loop \
	syscall_arg_fault sigaltstack fsgsbase syscall_numbering corrupt_xstate_header amx lam test_shadow_stack ldt_gdt \
	test_mremap_vdso; do
	build x86-$name x86/$name.c -no-pie -Ix86
done
build x86-check_initial_reg_state x86/check_initial_reg_state.c -no-pie -Wl,-ereal_start
build x86-nx_stack x86/nx_stack.c -no-pie -Wl,-z,noexecstack
build x86-sysret_ss_attrs x86/sysret_ss_attrs.c x86/thunks.S -no-pie
build x86-fsgsbase_restore x86/fsgsbase_restore.c x86/clang_helpers_64.S -no-pie
build x86-sysret_rip x86/sysret_rip.c x86/clang_helpers_64.S -no-pie

for name in wait_timeout wait_wouldblock requeue_pi requeue_pi_signal_restart requeue_pi_mismatched_ops \
	wait_uninitialized_heap wait_private_mapped_file wait requeue waitv; do
	build futex-$name futex/functional/futex_$name.c -Ifutex/functional
done
for name in posix_timers nanosleep threadtest; do
	build timers-$name timers/$name.c
done
for name in basic_test basic_percpu_ops_test; do
	build rseq-$name rseq/$name.c rseq/rseq.c -Irseq
done
build signal-sas sigaltstack/sas.c
for name in map_fixed_noreplace map_populate mremap_dontunmap mremap_test mlock2-tests madv_populate mrelease_test \
	soft-dirty on-fault-limit; do
	build mm-$name mm/$name.c mm/vm_util.c mm/thp_settings.c -Imm
done

# Others that look at what the patches touch: exec, ptrace, system call entry, process files.
build ptrace-get_syscall_info ptrace/get_syscall_info.c
build ptrace-peeksiginfo ptrace/peeksiginfo.c
build ptrace-vmaccess ptrace/vmaccess.c
build ptrace-get_set_sud ptrace/get_set_sud.c
build ptrace-breakpoints breakpoints/breakpoint_test.c
build syscall_user_dispatch syscall_user_dispatch/sud_test.c
for name in clone3 clone3_clear_sighand clone3_set_tid; do
	build clone-$name clone3/$name.c
done
for name in pidfd_test pidfd_poll_test pidfd_wait pidfd_open_test pidfd_getfd_test; do
	build pidfd-$name pidfd/$name.c
done
for name in proc-self-syscall proc-self-wchan read fd-001-lookup; do
	build proc-$name proc/$name.c
done
build membarrier-single membarrier/membarrier_test_single_thread.c
build membarrier-multi membarrier/membarrier_test_multi_thread.c
build exec-recursion exec/recursion-depth.c
build exec-null exec/null-argv.c
build kcmp kcmp/kcmp_test.c
