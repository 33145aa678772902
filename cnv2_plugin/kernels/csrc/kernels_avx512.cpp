// Compiled with AVX-512 (F, BW, DQ, VL).
#define CNV2_LANES 16
#define CNV2_REGISTERS 32
#define CNV2_NAME "avx512"
#define CNV2_TABLE kAvx512Kernels
#include "kernels_impl.h"
