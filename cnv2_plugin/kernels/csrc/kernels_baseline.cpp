// For every processor: 128-bit vectors (SSE2 on x86-64, NEON on ARM64).
#define CNV2_LANES 4
#if defined(__aarch64__)
#define CNV2_TILE 24
#define CNV2_NAME "neon"
#else
#define CNV2_TILE 12
#define CNV2_NAME "baseline"
#endif
#define CNV2_TABLE kBaselineKernels
#include "kernels_impl.h"
