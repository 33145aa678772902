// Compiled with AVX2 and FMA.
#define CNV2_LANES 8
#define CNV2_REGISTERS 16
#define CNV2_NAME "avx2"
#define CNV2_TABLE kAvx2Kernels
#include "kernels_impl.h"
