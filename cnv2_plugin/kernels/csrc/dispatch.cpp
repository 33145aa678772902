// Which kernels this processor runs.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace cnv2 {
namespace {

const Kernels& choose() {
#ifdef CNV2_X86
    const char* wanted = std::getenv("CNV2_KERNELS");
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const Kernels* all[] = {avx512 ? &kAvx512Kernels : nullptr, avx2 ? &kAvx2Kernels : nullptr};
    for (const Kernels* some : all)
        if (some && (!wanted || !*wanted || std::strcmp(wanted, some->name) == 0)) return *some;
#endif
    return kBaselineKernels;
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace cnv2
