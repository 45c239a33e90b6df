// SPDX-License-Identifier: Apache-2.0
//
// Functions of the kernel by name, from C++. In ring 3 there are none, and the program says so.
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <ukl.h>

UKL_KERNEL_FUNCTION(long long, ktime_get, void)
UKL_KERNEL_FUNCTION(long, si_mem_available, void)
UKL_KERNEL_FUNCTION(void, get_random_bytes, void *, unsigned long)
UKL_KERNEL_FUNCTION(unsigned long long, slow_virt_to_phys, void *)

namespace {

// Memory that functions of the kernel may use.
struct Free {
	void operator()(unsigned char *memory) const { ukl_kernel_free(memory); }
};
using Memory = std::unique_ptr<unsigned char[], Free>;

long long monotonic()
{
	timespec now{};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

bool clock_agrees()
{
	long long before = monotonic(), here = ukl_kernel_ktime_get(), after = monotonic();

	return before <= here && here <= after;
}

} // namespace

int main()
{
	if (!ukl_linked()) {
		std::puts("in ring 3, where no function of the kernel can be called");
		return ukl_kernel_alloc(1) == nullptr && errno == ENOSYS ? 0 : 1;
	}
	Memory memory(static_cast<unsigned char *>(ukl_kernel_alloc(4096)));
	if (!memory) {
		std::perror("ukl_kernel_alloc");
		return 1;
	}
	unsigned char zeros[64] = {};
	ukl_kernel_get_random_bytes(memory.get(), sizeof zeros);
	std::printf("clock: %s\n", clock_agrees() ? "agrees" : "differs");
	std::printf("random: %s\n", std::memcmp(memory.get(), zeros, sizeof zeros) ? "yes" : "no");
	std::printf("pages that are free: %s\n", ukl_kernel_si_mem_available() > 0 ? "some" : "none");
	std::printf("in a page of memory: %s\n", ukl_kernel_slow_virt_to_phys(memory.get()) % 4096 ? "no" : "yes");
	return clock_agrees() ? 0 : 1;
}
