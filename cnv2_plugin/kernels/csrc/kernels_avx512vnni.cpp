// Compiled with AVX-512 and its dot product of bytes (VNNI): convolutions of bytes. What computes in floats is AVX-512's.
#define CNV2_LANES 16
#define CNV2_REGISTERS 32
#include "bytes_impl.h"

namespace cnv2 {
namespace {

void select(const Select& s, int64_t begin, int64_t end, float* scratch) {
    (s.bytes ? select_bytes : kAvx512Kernels.select)(s, begin, end, scratch);
}

void spatial(const Spatial& s, int64_t begin, int64_t end, float* scratch) {
    (s.bytes ? spatial_bytes : kAvx512Kernels.spatial)(s, begin, end, scratch);
}

Kernels with_bytes(Kernels found) {
    found.name = "avx512vnni";
    found.select = select;
    found.spatial = spatial;
    return found;
}

}  // namespace

extern const Kernels kAvx512VnniKernels = with_bytes(kAvx512Kernels);

}  // namespace cnv2
