// Which kernels this processor runs.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "failure.h"
#include "kernels.h"

#ifdef CNV2_X86
#include <cpuid.h>
#elif defined(CNV2_DOTPROD) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(CNV2_DOTPROD)
#include <sys/auxv.h>
#endif

namespace cnv2 {
namespace {

#ifdef CNV2_X86

struct Processor {
    bool avx2 = false, avx512 = false, avx512vnni = false;
};

// What the processor has and the system saves when it switches between threads. (__builtin_cpu_supports needs a library of
// the compiler's that not every target has.)
Processor look_at_processor() {
    constexpr unsigned kVectors = bit_OSXSAVE | bit_AVX | bit_FMA, kSaved = 0x6, kSavedWide = 0xe6;
    constexpr unsigned kWide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    constexpr unsigned kDotProducts = 1u << 11;  // bit_AVX512VNNI, which older headers lack
    Processor found;
    unsigned a, b, c, d, saved, rest;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kVectors) != kVectors) return found;
    __asm__("xgetbv" : "=a"(saved), "=d"(rest) : "c"(0));
    if ((saved & kSaved) != kSaved || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    found.avx2 = b & bit_AVX2;
    found.avx512 = found.avx2 && (saved & kSavedWide) == kSavedWide && (b & kWide) == kWide;
    found.avx512vnni = found.avx512 && (c & kDotProducts);
    return found;
}

#elif defined(CNV2_DOTPROD)

bool has_dot_product() {
#if defined(__APPLE__)
    int has = 0;
    size_t size = sizeof(has);
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has;
#else
    constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP, which older headers lack
    return getauxval(AT_HWCAP) & kDotProduct;
#endif
}

#endif

const Kernels& choose() {
    const char* wanted = std::getenv("CNV2_KERNELS");
    if (wanted && !*wanted) wanted = nullptr;
#ifdef CNV2_X86
    Processor has = look_at_processor();
    const Kernels* all[] = {has.avx512vnni ? &kAvx512VnniKernels : nullptr, has.avx512 ? &kAvx512Kernels : nullptr,
                            has.avx2 ? &kAvx2Kernels : nullptr, &kBaselineKernels};
#elif defined(CNV2_DOTPROD)
    const Kernels* all[] = {has_dot_product() ? &kDotprodKernels : nullptr, &kBaselineKernels};
#else
    const Kernels* all[] = {&kBaselineKernels};
#endif
    for (const Kernels* some : all)
        if (some && (!wanted || std::strcmp(wanted, some->name) == 0)) return *some;
    refuse("CNV2_KERNELS is " + std::string(wanted) +
           ", which this processor does not run; take baseline, avx2, avx512 or avx512vnni on x86-64, neon or dotprod on "
           "ARM64, or leave it unset");
}

}  // namespace

const Kernels& kernels() {
    static std::atomic<const Kernels*> chosen{nullptr};  // no lock that a fork could find held
    const Kernels* found = chosen.load(std::memory_order_relaxed);
    if (!found) chosen = found = &choose();
    return *found;
}

}  // namespace cnv2
