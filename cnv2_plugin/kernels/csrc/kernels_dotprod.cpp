// For ARM64 with the dot product of bytes, an extension of ARMv8.2.
#define CNV2_LANES 4
#define CNV2_REGISTERS 32
#define CNV2_NAME "dotprod"
#define CNV2_TABLE kDotprodKernels
#include "kernels_impl.h"
