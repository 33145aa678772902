// Convolutions of bytes: activations are quantised to unsigned bytes when they are packed, weights are bytes of 7 bits,
// sums are int32. Every instruction set gives the same result to the bit: sums are exact, and what is computed in floats
// is rounded after every operation, which `rounded` sees to.
#pragma once

#include "vectors.h"

namespace cnv2 {
namespace {

typedef int32_t Ints __attribute__((vector_size(N * 4)));
typedef uint32_t Words __attribute__((vector_size(N * 4)));
typedef int32_t UnalignedInts __attribute__((vector_size(N * 4), aligned(4), may_alias));

inline Ints load_ints(const int32_t* p) { return *reinterpret_cast<const UnalignedInts*>(p); }
inline void store_ints(int32_t* p, Ints v) { *reinterpret_cast<UnalignedInts*>(p) = v; }
inline Ints all_ints(int32_t value) { return value - Ints{}; }

// A product that is not fused with the addition behind it.
inline Vec rounded(Vec product) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(product));
#elif defined(__SSE__)
    __asm__("" : "+x"(product));
#elif defined(__aarch64__)
    __asm__("" : "+w"(product));
#endif
    return product;
}

inline Vec activate_rounded(Vec x, int32_t act) {
    if (act != kHardswish) return activate(x, act);
    return x * smaller(all(1), larger(all(0), rounded(x * (1.0f / 6)) + 0.5f));
}

// ---- quantising ----

// How many steps the activation of a value is. Values come times this unit, those of a hard-swish plus half of it:
// where u is (x / 6 + 1 / 2) * unit, hard-swish is (u - unit / 2) * u, cut off at 0 and unit, of unit * unit / 6 an integer.
template <int kAct>
inline float unit_of(float inverse) {
    return kAct == kHardswish ? std::sqrt(6 * inverse) : inverse;
}
template <int kAct>
inline Vec in_steps(Vec x, float unit) {
    switch (kAct) {
        case kReLU: return larger(all(0), x);
        case kReLU6: return smaller(all(6 * unit), larger(all(0), x));
        case kHardswish: return (x - unit / 2) * smaller(all(unit), larger(all(0), x));
        default: return x;
    }
}

// The dot product of ARM multiplies signed bytes: there 128 is taken from every byte, and sums start at 128 times the weights'.
#if defined(__ARM_FEATURE_DOTPROD)
constexpr bool kSigned = true;
#else
constexpr bool kSigned = false;
#endif

// The nearest bytes, of halves the even one; NaN is the lowest. Four vectors are one vector of words, first byte lowest.
inline Ints to_bytes(const Vec (&x)[4], int32_t zero) {
#if CNV2_LANES == 16 && defined(__AVX512BW__)
    auto whole = [](Vec v) { return _mm512_cvtps_epi32(smaller(all(30000), v)); };
    __m512i add = _mm512_set1_epi16(int16_t(zero));
    __m512i even = _mm512_adds_epi16(_mm512_packs_epi32(whole(x[0]), whole(x[2])), add);
    __m512i odd = _mm512_adds_epi16(_mm512_packs_epi32(whole(x[1]), whole(x[3])), add);
    const __m512i order = _mm512_set4_epi32(0x0f070b03, 0x0e060a02, 0x0d050901, 0x0c040800);
    return Ints(_mm512_shuffle_epi8(_mm512_packus_epi16(even, odd), order));
#elif CNV2_LANES == 8 && defined(__AVX2__)
    auto whole = [](Vec v) { return _mm256_cvtps_epi32(smaller(all(30000), v)); };
    __m256i add = _mm256_set1_epi16(int16_t(zero));
    __m256i even = _mm256_adds_epi16(_mm256_packs_epi32(whole(x[0]), whole(x[2])), add);
    __m256i odd = _mm256_adds_epi16(_mm256_packs_epi32(whole(x[1]), whole(x[3])), add);
    const __m256i order = _mm256_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15,
                                           0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
    return Ints(_mm256_shuffle_epi8(_mm256_packus_epi16(even, odd), order));
#else
    constexpr float kNoFraction = 12582912;  // 3 << 22: floats from here on are whole
    Words bytes = {};
    for (int i = 0; i < 4; ++i) {
#if defined(__aarch64__)
        Vec least = Vec(vmaxnmq_f32(float32x4_t(x[i]), float32x4_t(all(float(-zero)))));
#else
        Vec least = larger(x[i], all(float(-zero)));
#endif
        Vec v = smaller(least, all(float(255 - zero))) + kNoFraction;
        bytes |= (Words(v) - uint32_t(0x4b400000 - zero)) << (8 * i);
    }
    return Ints(kSigned ? bytes ^ 0x80808080u : bytes);
#endif
}

// The inputs of a group, over a range of positions; of split maps one of each channel's planes.
struct Packing {
    Planes src;
    const int32_t* index;
    int inputs;
    const float *scale, *shift;      // or both null
    float inverse;
    int32_t zero;
    int64_t position, vectors;
    int64_t planes = 1, plane = 0;
};

// Every four inputs as words, those of one quad `stride` behind those of the one before.
template <int kAct, bool kAffine>
void pack_bytes(const Packing& p, int32_t* packed, int64_t stride) {
    float unit = unit_of<kAct>(p.inverse);
    for (int k = 0; k < p.inputs; k += 4, packed += stride) {
        const float* source[4];
        Vec a[4], b[4];
        for (int i = 0; i < 4; ++i) {  // behind the last input it is read again, for weights of zero
            int at = k + i < p.inputs ? k + i : p.inputs - 1;
            source[i] = p.src.at(p.index[at] * p.planes + p.plane) + p.position;
            float factor = kAct == kHardswish ? unit / 6 : unit;
            a[i] = all(kAffine ? p.scale[at] * factor : factor);
            b[i] = kAffine ? rounded(all(p.shift[at]) * factor) : all(0);
            if (kAct == kHardswish) b[i] += unit / 2;
        }
        for (int64_t v = 0; v < p.vectors; ++v) {
            Vec x[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                x[i] = load(source[i] + v * N);
                x[i] = rounded(x[i] * a[i]);
                if (kAffine || kAct == kHardswish) x[i] += b[i];
                x[i] = in_steps<kAct>(x[i], unit);
            }
            store_ints(packed + v * N, to_bytes(x, p.zero));
        }
    }
}

using PackBytes = void (*)(const Packing&, int32_t*, int64_t);
template <bool kAffine>
constexpr PackBytes kPackBytes[kActivations] = {pack_bytes<kIdentity, kAffine>, pack_bytes<kReLU, kAffine>,
                                                pack_bytes<kReLU6, kAffine>, pack_bytes<kHardswish, kAffine>};

// ---- tiles ----

// Four weights for every lane, and their products with four bytes each, added to sums. Two products of a byte and a weight
// of kMostWeight fit int16 together.
#if (CNV2_LANES == 8 && defined(__AVX2__)) || (CNV2_LANES == 16 && defined(__AVX512BW__))
struct FourWeights {
    Ints w;
    explicit FourWeights(int32_t four) : w(all_ints(four)) {}
    void add(Ints& sum, Ints x) const {
#if CNV2_LANES == 8
        sum += Ints(_mm256_madd_epi16(_mm256_maddubs_epi16(__m256i(x), __m256i(w)), _mm256_set1_epi16(1)));
#elif defined(__AVX512VNNI__)
        sum = Ints(_mm512_dpbusd_epi32(__m512i(sum), __m512i(x), __m512i(w)));
#else
        sum += Ints(_mm512_madd_epi16(_mm512_maddubs_epi16(__m512i(x), __m512i(w)), _mm512_set1_epi16(1)));
#endif
    }
};
#elif CNV2_LANES == 4 && defined(__SSE2__)
struct FourWeights {
    __m128i even, odd;
    explicit FourWeights(int32_t four)
        : even(_mm_srai_epi16(_mm_slli_epi16(_mm_set1_epi32(four), 8), 8)), odd(_mm_srai_epi16(_mm_set1_epi32(four), 8)) {}
    void add(Ints& sum, Ints x) const {
        __m128i even_bytes = _mm_and_si128(__m128i(x), _mm_set1_epi16(255)), odd_bytes = _mm_srli_epi16(__m128i(x), 8);
        sum += Ints(_mm_madd_epi16(even_bytes, even)) + Ints(_mm_madd_epi16(odd_bytes, odd));
    }
};
#elif defined(__ARM_FEATURE_DOTPROD)
struct FourWeights {
    int8x16_t w;
    explicit FourWeights(int32_t four) : w(vreinterpretq_s8_s32(vdupq_n_s32(four))) {}
    void add(Ints& sum, Ints x) const { sum = Ints(vdotq_s32(int32x4_t(sum), int8x16_t(x), w)); }
};
#elif CNV2_LANES == 4 && defined(__aarch64__)
struct FourWeights {
    int16x8_t even, odd;
    explicit FourWeights(int32_t four)
        : even(vshrq_n_s16(vshlq_n_s16(int16x8_t(all_ints(four)), 8), 8)), odd(vshrq_n_s16(int16x8_t(all_ints(four)), 8)) {}
    void add(Ints& sum, Ints x) const {
        int16x8_t even_bytes = int16x8_t(vandq_u16(uint16x8_t(x), vdupq_n_u16(255)));
        int16x8_t odd_bytes = int16x8_t(vshrq_n_u16(uint16x8_t(x), 8));
        sum = Ints(vpadalq_s16(int32x4_t(sum), vmlaq_s16(vmulq_s16(even_bytes, even), odd_bytes, odd)));
    }
};
#else
struct FourWeights {
    int32_t w[4];
    explicit FourWeights(int32_t four) {
        for (int i = 0; i < 4; ++i) w[i] = int8_t(uint32_t(four) >> (8 * i));
    }
    void add(Ints& sum, Ints x) const {
        for (int i = 0; i < 4; ++i) sum += Ints((Words(x) >> (8 * i)) & 255u) * w[i];
    }
};
#endif

// Vectors side by side in a tile; NEON without the dot product needs two registers for each one that is loaded.
constexpr int bytes_vectors(int rows) {
#if defined(__aarch64__) && !defined(__ARM_FEATURE_DOTPROD)
    return rows > 2 ? 4 : tile_vectors(rows);
#else
    return tile_vectors(rows);
#endif
}

struct BytesRows {
    const int32_t* x;                // packed: [quads][stride]
    int64_t stride;
    int quads;
    const int64_t* taps;             // of a 3x3 convolution: how far from there its nine inputs are
    const int32_t* weight;
    const float *scale, *bias;
    float* const* targets;
    int64_t position, vectors;
    int act;
    bool accumulate;
    int32_t start[kRows];            // of the sums, where kSigned
};

// Where the sums of so many rows start.
inline void start_sums(const int32_t* weight, int64_t count, int rows, int32_t* start) {
    Ints sum[kRows] = {}, ones = all_ints(0x01010101);
    for (int64_t k = 0; k < count; ++k)
        for (int r = 0; r < rows; ++r) FourWeights(*weight++).add(sum[r], ones);
    for (int r = 0; r < rows; ++r) start[r] = 128 * sum[r][0];
}

// Scales the sums of a tile, activates them and puts them where they belong.
template <int kAct, int R, int V>
inline void finish_bytes(const BytesRows& t, const Ints (&sum)[R][V], int64_t at) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        float* target = t.targets[r] + t.position + at;
        Vec scale = all(t.scale[r]), bias = all(t.bias ? t.bias[r] : 0);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            Vec y = activate_rounded(rounded(__builtin_convertvector(sum[r][v], Vec) * scale) + bias, kAct);
            store(target + v * N, t.accumulate ? rounded(y) + load(target + v * N) : y);
        }
    }
}

template <int R, int V, int kCount>
[[gnu::noinline]] void bytes_tile(const BytesRows& t, int64_t at) {
    Ints sum[R][V] = {};
    if constexpr (kSigned)
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; ++v) sum[r][v] = all_ints(t.start[r]);
    const int32_t *w = t.weight, *packed = t.x + at;
    for (int k = 0; k < t.quads; ++k, packed += t.stride) {
        for (int tap = 0; tap < kCount; ++tap, w += R) {
            const int32_t* source = kCount == 1 ? packed : packed + t.taps[tap];
            Ints x[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) x[v] = load_ints(source + v * N);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                FourWeights weights(w[r]);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) weights.add(sum[r][v], x[v]);
            }
        }
    }
    switch (t.act) {
        case kReLU: finish_bytes<kReLU>(t, sum, at); break;
        case kReLU6: finish_bytes<kReLU6>(t, sum, at); break;
        case kHardswish: finish_bytes<kHardswish>(t, sum, at); break;
        default: finish_bytes<kIdentity>(t, sum, at);
    }
}

template <int R, int V, int kCount>
inline void bytes_some(const BytesRows& t, int64_t at, int vectors) {
    if constexpr (V == 1)
        bytes_tile<R, V, kCount>(t, at);
    else if (vectors == V)
        bytes_tile<R, V, kCount>(t, at);
    else
        bytes_some<R, V - 1, kCount>(t, at, vectors);
}

template <int R, int kCount>
void bytes_rows(const BytesRows& t) {
    constexpr int V = bytes_vectors(R);
    for (int64_t v = 0; v < t.vectors;) {
        int vectors = int(next_tile(t.vectors - v, V));
        bytes_some<R, V, kCount>(t, v * N, vectors);
        v += vectors;
    }
}

using BytesFunction = void (*)(const BytesRows&);
template <int kCount>
constexpr BytesFunction kBytesRows[kRows] = {bytes_rows<1, kCount>, bytes_rows<2, kCount>, bytes_rows<3, kCount>,
                                             bytes_rows<4, kCount>};

// All rows of group `g`, from inputs that are packed.
template <int kCount, class Layer>
void bytes_group(const Layer& s, int g, BytesRows some, bool accumulate) {
    const int32_t* target = s.target + int64_t(g) * s.rows;
    some.quads = (s.inputs + 3) / 4;
    some.act = s.act_out;
    some.accumulate = accumulate;
    for (int r = 0; r < s.rows; r += kRows) {
        int rows = s.rows - r < kRows ? s.rows - r : kRows;
        int64_t row = int64_t(g) * s.rows + r;
        float* targets[kRows];
        for (int i = 0; i < rows; ++i) targets[i] = s.dst.at(target[r + i]);
        some.targets = targets;
        some.weight = s.bytes + row * some.quads * kCount;
        some.scale = s.row_scale + 1 + row;
        some.bias = s.bias ? s.bias + row : nullptr;
        if constexpr (kSigned) start_sums(some.weight, int64_t(some.quads) * kCount, rows, some.start);
        kBytesRows<kCount>[rows - 1](some);
    }
}

void select_bytes(const Select& s, int64_t begin, int64_t end, float* scratch) {
    int32_t* packed = reinterpret_cast<int32_t*>(scratch);
    int64_t vectors = (end - begin + N - 1) / N, most = panel_vectors((s.inputs + 3) / 4);
    for (int g = 0; g < s.groups; ++g) {
        int64_t input = int64_t(g) * s.inputs;
        Packing packing{s.src, s.index + input, s.inputs, nullptr, nullptr, s.row_scale[0], s.zero, begin, 0};
        if (s.scale) {
            packing.scale = s.scale + input;
            packing.shift = s.shift + input;
        }
        for (int64_t v = 0; v < vectors; v += packing.vectors) {
            packing.position = begin + v * N;
            packing.vectors = next_tile(vectors - v, most);
            int64_t stride = packing.vectors * N;
            (s.scale ? kPackBytes<true> : kPackBytes<false>)[s.act_in](packing, packed, stride);
            BytesRows some{packed, stride};
            some.position = packing.position;
            some.vectors = packing.vectors;
            bytes_group<1>(s, g, some, s.accumulate);
        }
        if (s.zero_pads)
            for (int r = 0; r < s.rows; ++r) zero_pad_columns(s.dst.at(s.target[int64_t(g) * s.rows + r]), s.size, begin, end);
    }
}

// Inputs are packed from a row and a position in front of the results to as far behind them; zeros around planes are zeros.
void spatial_bytes(const Spatial& s, int64_t begin, int64_t end, float* scratch) {
    int32_t* packed = reinterpret_cast<int32_t*>(scratch);
    int64_t row = s.size.row(), most = spatial_positions(s), planes = s.planes(), taps[9];
    for (int g = 0; g < s.groups; ++g) {
        Packing packing{s.src, s.index + int64_t(g) * s.inputs, s.inputs, nullptr, nullptr, s.row_scale[0], s.zero, 0, 0, planes};
        for (int64_t position = begin; position < end; position += most) {
            BytesRows some{packed};
            some.position = position;
            some.vectors = ((position + most < end ? most : end - position) + N - 1) / N;
            packing.position = position - row - 1;
            packing.vectors = (some.vectors * N + 2 * row + 2 + N - 1) / N;
            int64_t stride = packing.vectors * N;
            some.stride = planes * stride;
            for (packing.plane = 0; packing.plane < planes; ++packing.plane)
                kPackBytes<false>[kIdentity](packing, packed + packing.plane * stride, some.stride);
            for (int y = 0; y < 3; ++y)
                for (int x = 0; x < 3; ++x)
                    taps[3 * y + x] = s.stride == 1 ? y * row + x
                                                    : ((y != 1 ? 2 : 0) + (x != 1 ? 1 : 0)) * stride + (y > 0) * row + (x > 0);
            some.taps = taps;
            bytes_group<9>(s, g, some, false);
        }
        if (s.zero_pads)
            for (int r = 0; r < s.rows; ++r) zero_pad_columns(s.dst.at(s.target[int64_t(g) * s.rows + r]), s.size, begin, end);
    }
}

}  // namespace
}  // namespace cnv2
