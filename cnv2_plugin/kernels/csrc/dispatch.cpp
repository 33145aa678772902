// Which kernels this processor runs.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels.h"
#include "failure.h"

namespace cnv2 {
namespace {

const Kernels& choose() {
    const char* wanted = std::getenv("CNV2_KERNELS");
    if (wanted && !*wanted) wanted = nullptr;
#ifdef CNV2_X86
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const Kernels* all[] = {avx512 ? &kAvx512Kernels : nullptr, avx2 ? &kAvx2Kernels : nullptr, &kBaselineKernels};
#else
    const Kernels* all[] = {&kBaselineKernels};
#endif
    for (const Kernels* some : all)
        if (some && (!wanted || std::strcmp(wanted, some->name) == 0)) return *some;
    refuse("CNV2_KERNELS is " + std::string(wanted) + ", which this processor does not run; take baseline, avx2 or avx512, or "
           "leave it unset");
}

}  // namespace

const Kernels& kernels() {
    static std::atomic<const Kernels*> chosen{nullptr};  // no lock that a fork could find held
    const Kernels* found = chosen.load(std::memory_order_relaxed);
    if (!found) chosen = found = &choose();
    return *found;
}

}  // namespace cnv2
