// What the kernels of an instruction set share: its vectors, and how they are laid over positions. Takes CNV2_LANES and
// CNV2_REGISTERS (vector registers). Vectors are the compiler's own (GCC, Clang), so one text serves every processor.
#pragma once

#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"

#if defined(__SSE__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace cnv2 {
namespace {

constexpr int N = CNV2_LANES;
constexpr int kRows = kBlock;

typedef float Vec __attribute__((vector_size(N * 4)));
typedef float Unaligned __attribute__((vector_size(N * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Unaligned*>(p) = v; }
// As many weights of one byte as floats; compilers take them one by one by themselves.
inline Vec load(const int8_t* p) {
#if CNV2_LANES == 16 && defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif CNV2_LANES == 8 && defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif CNV2_LANES == 4 && (defined(__SSE2__) || defined(__aarch64__))
    int32_t four;
    std::memcpy(&four, p, 4);
#if defined(__SSE2__)
    __m128i bytes = _mm_cvtsi32_si128(four), halves = _mm_unpacklo_epi8(bytes, bytes);
    return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(halves, halves), 24));
#else
    return Vec(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))))));
#endif
#else
    typedef int8_t Bytes __attribute__((vector_size(N), aligned(1), may_alias));
    return __builtin_convertvector(*reinterpret_cast<const Bytes*>(p), Vec);
#endif
}
inline Vec all(float value) { return value - Vec{}; }  // a plain broadcast: subtracting 0 changes nothing

// The larger and the smaller one; where the second is NaN, that (on ARM64 where the first is, too).
inline Vec larger(Vec a, Vec b) {
#if CNV2_LANES == 16 && defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif CNV2_LANES == 8 && defined(__AVX__)
    return _mm256_max_ps(a, b);
#elif CNV2_LANES == 4 && defined(__SSE__)
    return _mm_max_ps(a, b);
#elif CNV2_LANES == 4 && defined(__aarch64__)
    return Vec(vmaxq_f32(float32x4_t(a), float32x4_t(b)));
#else
    return a > b ? a : b;
#endif
}

inline Vec smaller(Vec a, Vec b) {
#if CNV2_LANES == 16 && defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif CNV2_LANES == 8 && defined(__AVX__)
    return _mm256_min_ps(a, b);
#elif CNV2_LANES == 4 && defined(__SSE__)
    return _mm_min_ps(a, b);
#elif CNV2_LANES == 4 && defined(__aarch64__)
    return Vec(vminq_f32(float32x4_t(a), float32x4_t(b)));
#else
    return a < b ? a : b;
#endif
}

inline Vec activate(Vec x, int32_t act) {
    switch (act) {
        case kReLU: return larger(all(0), x);
        case kReLU6: return smaller(all(6), larger(all(0), x));
        case kHardswish: return x * smaller(all(1), larger(all(0), x * (1.0f / 6) + 0.5f));
        default: return x;
    }
}

inline float activate(float x, int32_t act) {
    switch (act) {
        case kReLU: return x < 0 ? 0 : x;
        case kReLU6: return x < 0 ? 0 : x > 6 ? 6 : x;
        case kHardswish: {
            float gate = x * (1.0f / 6) + 0.5f;
            return x * (gate < 0 ? 0 : gate > 1 ? 1 : gate);
        }
        default: return x;
    }
}

// How many vectors the next tile takes of those that are left: never one alone behind a full tile.
inline int64_t next_tile(int64_t left, int64_t wanted) {
    if (left <= wanted) return left;
    return left == wanted + 1 && wanted > 2 ? wanted - 1 : wanted;
}

// Vectors side by side in a tile of so many rows: their sums, the loaded vectors and a weight fit the registers, so that
// no vector is loaded once for each row.
constexpr int tile_vectors(int rows) {
    int vectors = (CNV2_REGISTERS - 1) / (rows + 1);
    return rows == 1 || vectors > kMaxTile ? int(kMaxTile) : vectors;
}

void zero_pad_columns(float* plane, const Geometry& size, int64_t begin, int64_t end) {
    int64_t row = size.row();
    for (int64_t p = begin / row * row + size.width; p < end; p += row)
        if (p >= begin) plane[p] = 0;
    if (end == size.positions())
        for (int64_t p = end; p % kMaxLanes; ++p) plane[p] = 0;
}

// Vectors that are packed at once: full tiles, as many as stay in the first-level cache while all rows read them.
inline int64_t panel_vectors(int64_t inputs) {
    constexpr int64_t kWhole = tile_vectors(kRows);
    int64_t vectors = kPanel / (inputs * N) / kWhole * kWhole;
    return vectors < kWhole ? kWhole : vectors;
}

}  // namespace
}  // namespace cnv2
