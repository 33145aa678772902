// For every processor: 128-bit vectors (SSE2 on x86-64, NEON on ARM64).
#define CNV2_LANES 4
#if defined(__aarch64__)
#define CNV2_REGISTERS 32
#define CNV2_NAME "neon"
#else
#define CNV2_REGISTERS 16
#define CNV2_NAME "baseline"
#endif
#define CNV2_TABLE kBaselineKernels
#include "kernels_impl.h"
