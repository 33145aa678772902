// Included once for every instruction set, with CNV2_LANES, CNV2_REGISTERS, CNV2_NAME and CNV2_TABLE defined.
#include "bytes_impl.h"
#include "vectors.h"

namespace cnv2 {
namespace {

template <int kAct, int R, int V>
inline void activate_all(Vec (&sum)[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = activate(sum[r][v], kAct);
}

// Activates the sums of a tile and puts them where they belong.
template <int R, int V>
inline void finish(Vec (&sum)[R][V], int32_t act, bool accumulate, float* const* targets, int64_t position) {
    switch (act) {
        case kReLU: activate_all<kReLU>(sum); break;
        case kReLU6: activate_all<kReLU6>(sum); break;
        case kHardswish: activate_all<kHardswish>(sum); break;
        default: break;
    }
    if (accumulate) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] += load(targets[r] + position + v * N);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(targets[r] + position + v * N, sum[r][v]);
}

// ---- 1x1 ----

// Rows of one block over a range of positions.
struct SelectRows {
    const float* x;                  // packed: [inputs][stride]
    int64_t stride;
    const float* const* sources;     // not packed: one pointer an input
    int inputs;
    const float *weight, *bias;
    float* const* targets;
    int64_t position, vectors;       // the first position, and how many vectors from there
    int act;
    bool accumulate;
};

template <int R, int V, bool kPacked>
[[gnu::noinline]] void select_tile(const SelectRows& t, int64_t at) {
    Vec sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        Vec start = all(t.bias ? t.bias[r] : 0);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = start;
    }
    const float* w = t.weight;
    const float* packed = t.x + at;
    for (int k = 0; k < t.inputs; ++k) {
        const float* source = kPacked ? packed : t.sources[k] + t.position + at;
        Vec x[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) x[v] = load(source + v * N);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Vec weight = all(w[r]);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] += weight * x[v];
        }
        w += R;
        packed += t.stride;
    }
    finish(sum, t.act, t.accumulate, t.targets, t.position + at);
}

// A tile of at most V vectors.
template <int R, int V, bool kPacked>
inline void select_some(const SelectRows& t, int64_t at, int vectors) {
    if constexpr (V == 1)
        select_tile<R, V, kPacked>(t, at);
    else if (vectors == V)
        select_tile<R, V, kPacked>(t, at);
    else
        select_some<R, V - 1, kPacked>(t, at, vectors);
}

template <int R, bool kPacked>
void select_rows(const SelectRows& t) {
    constexpr int V = tile_vectors(R);
    for (int64_t v = 0; v < t.vectors;) {
        int vectors = int(next_tile(t.vectors - v, V));
        select_some<R, V, kPacked>(t, v * N, vectors);
        v += vectors;
    }
}

using SelectFunction = void (*)(const SelectRows&);
constexpr SelectFunction kSelectPacked[kRows] = {select_rows<1, true>, select_rows<2, true>, select_rows<3, true>,
                                                 select_rows<4, true>};
constexpr SelectFunction kSelectDirect[kRows] = {select_rows<1, false>, select_rows<2, false>, select_rows<3, false>,
                                                 select_rows<4, false>};

template <int kAct>
void pack(const Select& s, const int32_t* index, const float* scale, const float* shift, int64_t position, int64_t vectors,
          float* packed) {
    for (int k = 0; k < s.inputs; ++k) {
        const float* source = s.src.at(index[k]) + position;
        Vec a = all(scale ? scale[k] : 1), b = all(shift ? shift[k] : 0);
        for (int64_t v = 0; v < vectors; ++v, packed += N) store(packed, activate(load(source + v * N) * a + b, kAct));
    }
}

using Pack = void (*)(const Select&, const int32_t*, const float*, const float*, int64_t, int64_t, float*);
constexpr Pack kPack[kActivations] = {pack<kIdentity>, pack<kReLU>, pack<kReLU6>, pack<kHardswish>};

void select(const Select& s, int64_t begin, int64_t end, float* scratch) {
    if (s.bytes) return select_bytes(s, begin, end, scratch);
    constexpr int kTargets = 64;
    bool packs = s.scale || s.act_in != kIdentity;
    const float* sources[kTargets];
    bool direct = !packs && s.inputs <= kTargets;
    int64_t vectors = (end - begin + N - 1) / N, most = direct ? vectors : panel_vectors(s.inputs);
    for (int g = 0; g < s.groups; ++g) {
        const int32_t *index = s.index + int64_t(g) * s.inputs, *target = s.target + int64_t(g) * s.rows;
        const float* scale = s.scale ? s.scale + int64_t(g) * s.inputs : nullptr;
        const float* shift = s.shift ? s.shift + int64_t(g) * s.inputs : nullptr;
        const float* weight = s.weight + int64_t(g) * s.inputs * s.rows;
        const float* bias = s.bias ? s.bias + int64_t(g) * s.rows : nullptr;
        if (direct)
            for (int k = 0; k < s.inputs; ++k) sources[k] = s.src.at(index[k]);
        for (int64_t v = 0; v < vectors;) {
            int64_t position = begin + v * N, panel = next_tile(vectors - v, most);
            if (!direct) kPack[s.act_in](s, index, scale, shift, position, panel, scratch);
            for (int r = 0; r < s.rows; r += kRows) {
                int rows = s.rows - r < kRows ? s.rows - r : kRows;
                float* targets[kRows];
                for (int i = 0; i < rows; ++i) targets[i] = s.dst.at(target[r + i]);
                SelectRows some{scratch, panel * N, sources, s.inputs, weight + int64_t(r) * s.inputs,
                                bias ? bias + r : nullptr, targets, position, panel, s.act_out, s.accumulate};
                (direct ? kSelectDirect : kSelectPacked)[rows - 1](some);
            }
            v += panel;
        }
        if (s.zero_pads)
            for (int r = 0; r < s.rows; ++r) zero_pad_columns(s.dst.at(target[r]), s.size, begin, end);
    }
}

// ---- 3x3 ----

constexpr int kTaps = 9;

struct SpatialTile {
    const float* const* taps;        // [inputs][9]: where position 0 of the result reads
    int inputs;
    const float *weight, *bias;
    float* const* targets;
    int64_t position;
    int act;
};

template <int R, int V>
void spatial_tile(const SpatialTile& t) {
    Vec sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        Vec start = all(t.bias ? t.bias[r] : 0);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = start;
    }
    const float* w = t.weight;
    const float* const* tap = t.taps;
    for (int k = 0; k < t.inputs * kTaps; ++k, w += R) {
        const float* source = *tap++ + t.position;
        Vec in[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) in[v] = load(source + v * N);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Vec weight = all(w[r]);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] += weight * in[v];
        }
    }
    finish(sum, t.act, false, t.targets, t.position);
}

using SpatialFunction = void (*)(const SpatialTile&);

template <int R, int V>
constexpr SpatialFunction spatial_or_null() {
    if constexpr (V <= tile_vectors(R)) return spatial_tile<R, V>;
    return nullptr;
}

struct SpatialTable {
    SpatialFunction tile[kRows * kMaxTile] = {};
    template <int... I>
    constexpr void fill(std::integer_sequence<int, I...>) {
        ((tile[I] = spatial_or_null<I / kMaxTile + 1, I % kMaxTile + 1>()), ...);
    }
    constexpr SpatialTable() { fill(std::make_integer_sequence<int, kRows * kMaxTile>()); }
};
constexpr SpatialTable kSpatial;

// Where the nine neighbours of position 0 are: in one plane, or in the four planes of a split channel.
void find_taps(const Spatial& s, int32_t channel, const float** taps) {
    int64_t row = s.size.row();
    for (int y = 0; y < 3; ++y)
        for (int x = 0; x < 3; ++x) {
            if (s.stride == 1) {
                *taps++ = s.src.at(channel) + (y - 1) * row + x - 1;
            } else {
                int64_t plane = 4 * int64_t(channel) + (y != 1 ? 2 : 0) + (x != 1 ? 1 : 0);
                *taps++ = s.src.at(plane) - (y == 0 ? row : 0) - (x == 0 ? 1 : 0);
            }
        }
}

void spatial(const Spatial& s, int64_t begin, int64_t end, float* scratch) {
    if (s.bytes) return spatial_bytes(s, begin, end, scratch);
    const float* taps[kMostSpatialInputs * kTaps];
    for (int g = 0; g < s.groups; ++g) {
        const int32_t *index = s.index + int64_t(g) * s.inputs, *target = s.target + int64_t(g) * s.rows;
        const float* bias = s.bias ? s.bias + int64_t(g) * s.rows : nullptr;
        for (int k = 0; k < s.inputs; ++k) find_taps(s, index[k], taps + k * kTaps);
        for (int r = 0; r < s.rows; r += kBlock) {
            int rows = s.rows - r < kBlock ? s.rows - r : kBlock, wanted = tile_vectors(rows);
            float* targets[kBlock];
            for (int i = 0; i < rows; ++i) targets[i] = s.dst.at(target[r + i]);
            SpatialTile tile{taps, s.inputs, s.weight + (int64_t(g) * s.rows + r) * s.inputs * kTaps,
                             bias ? bias + r : nullptr, targets, 0, s.act_out};
            for (int64_t p = begin; p < end;) {
                int vectors = int(next_tile((end - p + N - 1) / N, wanted));
                tile.position = p;
                kSpatial.tile[(rows - 1) * kMaxTile + vectors - 1](tile);
                p += int64_t(vectors) * N;
            }
        }
        if (s.zero_pads)
            for (int r = 0; r < s.rows; ++r) zero_pad_columns(s.dst.at(target[r]), s.size, begin, end);
    }
}

// ---- the rest: one pass over memory each ----

void split(const Split& s, int64_t begin, int64_t end) {
    int64_t half = s.width / 2;
    for (int64_t c = begin; c < end; ++c)
        for (int odd = 0; odd < 2; ++odd) {
            float *even_columns = s.dst.at(4 * c + 2 * odd), *odd_columns = s.dst.at(4 * c + 2 * odd + 1);
            for (int64_t y = 0; y < s.out_size.height; ++y) {
                float *a = even_columns + y * s.out_size.row(), *b = odd_columns + y * s.out_size.row();
                int64_t x = 0;
                if (2 * y + odd < s.height) {
                    const float* in = s.src + c * s.src_stride + (2 * y + odd) * s.src_row;
                    for (; x < half; ++x) {
                        a[x] = in[2 * x];
                        b[x] = in[2 * x + 1];
                    }
                    if (s.width % 2) {
                        a[x] = in[2 * x];
                        b[x++] = 0;
                    }
                }
                for (; x < s.out_size.row(); ++x) a[x] = b[x] = 0;
            }
            for (int64_t p = s.out_size.positions(); p % kMaxLanes; ++p) even_columns[p] = odd_columns[p] = 0;
        }
}

void maximum(const Maximum& s, int64_t begin, int64_t end) {
    Spatial like{};
    like.src = s.src;
    like.size = s.size;
    like.stride = 2;
    for (int64_t c = begin; c < end; ++c) {
        const float* taps[kTaps];
        find_taps(like, int32_t(c), taps);
        float* out = s.dst.at(c);
        for (int64_t p = 0; p < s.size.positions(); p += N) {
            Vec most = load(taps[0] + p);
            for (int t = 1; t < kTaps; ++t) {
                Vec x = load(taps[t] + p);
                most = x != x ? x : larger(x, most);
            }
            store(out + p, most);
        }
        if (s.zero_pads) zero_pad_columns(out, s.size, 0, s.size.positions());
    }
}

void pool(const Pool& s, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
        const float* in = s.src + c * s.src_stride;
        float* out = s.dst.at(c);
        for (int64_t y = 0; y < s.out_size.height; ++y, in += 2 * s.src_row, out += s.out_size.row()) {
            const float *a = in, *b = in + s.src_row;
            for (int64_t x = 0; x < s.out_size.width; ++x)
                out[x] = 0.25f * ((a[2 * x] + a[2 * x + 1]) + (b[2 * x] + b[2 * x + 1]));
            out[s.out_size.width] = 0;
        }
        for (int64_t p = s.out_size.positions(); p % kMaxLanes; ++p) s.dst.at(c)[p] = 0;
    }
}

// One channel's sum waits for each addition, so several channels are summed side by side.
template <int kChannels>
void sum_channels(const Planes& map, const Geometry& size, int64_t first, float* sums) {
    const float* in[kChannels];
    float sum[kChannels] = {};
    for (int c = 0; c < kChannels; ++c) in[c] = map.at(first + c);
    for (int64_t y = 0; y < size.height; ++y)
        for (int64_t x = 0, p = y * size.row(); x < size.width; ++x, ++p)
#pragma GCC unroll 8
            for (int c = 0; c < kChannels; ++c) sum[c] += in[c][p];
    for (int c = 0; c < kChannels; ++c) sums[c] = sum[c];
}

// The products of every weight with the value of its row, added to sums.
template <typename Weight>
void add_rows(const Weight* weight, const float* values, int rows, int columns, float* sums) {
    for (int row = 0; row < rows; ++row, weight += columns)
        for (int column = 0; column < columns; ++column) sums[column] += weight[column] * values[row];
}

void excite(const Excite& s) {
    int64_t count = s.size.height * s.size.width;
    float *hidden = s.scratch, *gate = s.scratch + s.hidden;
    for (int j = 0; j < s.hidden; ++j) hidden[j] = 0;
    int summed = 0;
    for (; summed + 8 <= s.channels; summed += 8) sum_channels<8>(s.map, s.size, s.first + summed, gate + summed);
    for (; summed < s.channels; ++summed) sum_channels<1>(s.map, s.size, s.first + summed, gate + summed);
    for (int c = 0; c < s.channels; ++c) gate[c] /= count;
    if (s.squeeze_bytes)
        add_rows(s.squeeze_bytes, gate, s.channels, s.hidden, hidden);
    else
        add_rows(s.squeeze, gate, s.channels, s.hidden, hidden);
    for (int j = 0; j < s.hidden; ++j) hidden[j] = hidden[j] < 0 ? 0 : s.squeeze_bytes ? hidden[j] * s.squeeze[j] : hidden[j];
    for (int c = 0; c < s.channels; ++c) gate[c] = 0;
    if (s.excite_bytes)
        add_rows(s.excite_bytes, hidden, s.hidden, s.channels, gate);
    else
        add_rows(s.excite, hidden, s.hidden, s.channels, gate);
    for (int c = 0; c < s.channels; ++c) {
        float factor = 1 / (1 + std::exp(-(s.excite_bytes ? gate[c] * s.excite[c] : gate[c])));
        float* plane = s.map.at(s.first + c);
        for (int64_t p = 0; p < s.size.positions(); ++p) plane[p] *= factor;
    }
}

template <int kAct>
void normalise_channel(float* plane, int64_t positions, float scale, float shift) {
    Vec a = all(scale), b = all(shift);
    for (int64_t p = 0; p < positions; p += N) store(plane + p, activate(load(plane + p) * a + b, kAct));
}

using NormaliseChannel = void (*)(float*, int64_t, float, float);
constexpr NormaliseChannel kNormaliseChannel[kActivations] = {normalise_channel<kIdentity>, normalise_channel<kReLU>,
                                                              normalise_channel<kReLU6>, normalise_channel<kHardswish>};

void normalise(const Normalise& s, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
        float* plane = s.map.at(c);
        kNormaliseChannel[s.act](plane, s.size.positions(), s.scale ? s.scale[c] : 1, s.shift ? s.shift[c] : 0);
        if (s.zero_pads) zero_pad_columns(plane, s.size, 0, s.size.positions());
    }
}

template <int kChannels>
void average_channels(const Average& s, int64_t first) {
    float sum[kChannels];
    sum_channels<kChannels>(s.src, s.size, first, sum);
    for (int c = 0; c < kChannels; ++c) {
        float* out = s.dst.at(first + c);
        out[0] = sum[c] / float(s.size.height * s.size.width);
        out[1] = 0;
    }
}

void average(const Average& s, int64_t begin, int64_t end) {
    int64_t c = begin;
    for (; c + 8 <= end; c += 8) average_channels<8>(s, c);
    for (; c < end; ++c) average_channels<1>(s, c);
}

template <int R, typename Weight>
void linear_rows(const Linear& s, const Weight* weight, int64_t first) {
    const Weight* w = weight + first * s.inputs;
    Vec sums[R] = {};
    int k = 0;
    for (; k + N <= s.inputs; k += N) {
        Vec x = load(s.x + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r] += x * load(w + int64_t(r) * s.inputs + k);
    }
    for (int r = 0; r < R; ++r) {
        float bias = s.bias ? s.bias[first + r] : 0, sum = s.bytes ? 0 : bias;
        for (int lane = 0; lane < N; ++lane) sum += sums[r][lane];
        for (int rest = k; rest < s.inputs; ++rest) sum += s.x[rest] * w[int64_t(r) * s.inputs + rest];
        if (s.bytes) sum = sum * s.weight[first + r] + bias;
        float* out = s.dst.at(first + r);
        out[0] = activate(sum, s.act_out);
        out[1] = 0;
    }
}

template <typename Weight>
void linear_of(const Linear& s, const Weight* weight, int64_t begin, int64_t end) {
    int64_t r = begin;
    for (; r + 8 <= end; r += 8) linear_rows<8>(s, weight, r);
    for (; r < end; ++r) linear_rows<1>(s, weight, r);
}

void linear(const Linear& s, int64_t begin, int64_t end) {
    if (s.bytes)
        linear_of(s, s.bytes, begin, end);
    else
        linear_of(s, s.weight, begin, end);
}

void store_rows(const Store& s, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
        const float* in = s.src.at(s.index[c]);
        float* out = s.dst + c * s.size.height * s.size.width;
        float a = s.scale ? s.scale[c] : 1, b = s.shift ? s.shift[c] : 0;
        bool copies = !s.scale && s.act == kIdentity;
        for (int64_t y = 0; y < s.size.height; ++y, in += s.size.row(), out += s.size.width) {
            if (copies)
                std::memcpy(out, in, s.size.width * sizeof(float));
            else
                for (int64_t x = 0; x < s.size.width; ++x) out[x] = activate(in[x] * a + b, s.act);
        }
    }
}

}  // namespace

extern const Kernels CNV2_TABLE = {CNV2_NAME, N, select, spatial, split, maximum, pool, excite, normalise, average, linear,
                                  store_rows};

}  // namespace cnv2
