// The kernels of one instruction set, on maps whose channels are planes of memory.
//
// A plane holds the rows of one channel one after the other with one spare column behind each row. Where a map is
// padded, that column and what lies in front of and behind the plane are zero: a 3x3 convolution then reads its
// neighbours at fixed distances, and every kernel runs over flat positions without looking at rows.
#pragma once

#include <cstdint>

#include "opcodes.h"

namespace cnv2 {

struct Geometry {
    int64_t height, width;
    int64_t row() const { return width + 1; }
    int64_t positions() const { return height * row(); }
};

// Planes of a map; `base` is the first position of channel 0.
struct Planes {
    float* base;
    int64_t stride;
    float* at(int64_t channel) const { return base + channel * stride; }
};

// A 1x1 group convolution between selected channels: dst[target] (+)= act(bias + weight * act(scale * src[index] + shift)).
// Of bytes: dst[target] (+)= act(bias + row_scale * (bytes * limited(zero + inverse * act(scale * src[index] + shift)))),
// where limited() rounds and cuts off at 0 and 255; so too a 3x3 convolution of bytes.
struct Select {
    Planes src, dst;
    Geometry size;
    int32_t groups, inputs, rows;        // inputs and rows of each group
    int32_t act_in, act_out;
    bool accumulate, zero_pads;
    const int32_t *index, *target;       // [groups][inputs], [groups][rows]
    const float *weight, *bias;          // [groups][blocks of kBlock rows][inputs][rows of the block]; [groups][rows] or null
    const float *scale, *shift;          // [groups][inputs] or both null
    const int32_t* bytes;                // null, or in place of weight [groups][blocks][inputs / 4][rows of the block]: of
                                         // each four inputs, filled up with zeros, a word with the first one's byte lowest
    const float* row_scale;              // the inverse of the step, then [groups][rows]
    int32_t zero;                        // byte that stands for zero
};

// A 3x3 group convolution with zero padding from a padded map. With stride 2 the map is split: of every channel four
// planes (see Split) of the size of the result, so that the neighbours are at fixed distances again.
struct Spatial {
    Planes src, dst;
    Geometry size;
    int32_t groups, inputs, rows, stride, act_out;
    bool zero_pads;
    const int32_t *index, *target;       // [groups][inputs], [groups][rows]
    const float *weight, *bias;          // [groups][blocks][inputs][9][rows of the block]; [groups][rows] or null
    const int32_t* bytes;                // null, or in place of weight [groups][blocks][inputs / 4][9][rows of the block]
    const float* row_scale;              // as of Select
    int32_t zero;
    int64_t planes() const { return stride == 1 ? 1 : 4; }  // of each channel
};

// Every channel as four planes: its even and odd columns of even rows, then those of odd rows.
struct Split {
    const float* src;
    int64_t src_stride, src_row, height, width;
    Planes dst;
    Geometry out_size;
};

// The largest of 3x3 positions, 2 apart, of a split map without negative values.
struct Maximum {
    Planes src, dst;
    Geometry size;
    bool zero_pads;
};

// The mean of 2x2 windows of rows that are `src_row` apart.
struct Pool {
    const float* src;
    int64_t src_stride, src_row;
    Planes dst;
    Geometry out_size;
};

// Squeeze-and-excitation in place on the channels from `first` on. Of bytes, weights are those times a scale of every result.
struct Excite {
    Planes map;
    Geometry size;
    int32_t first, channels, hidden;
    const float *squeeze, *excite;       // [channels][hidden], [hidden][channels]
    const int8_t *squeeze_bytes, *excite_bytes;  // or both null; squeeze and excite are scales then
    float* scratch;                      // channels + hidden floats
};

// Every channel normalised and activated in place.
struct Normalise {
    Planes map;
    Geometry size;
    int32_t act;
    bool zero_pads;
    const float *scale, *shift;          // or both null
};

// The mean over every plane; dst has one position.
struct Average {
    Planes src, dst;
    Geometry size;
};

// A linear layer from a vector to maps of one position.
struct Linear {
    const float* x;                      // inputs
    Planes dst;
    int32_t inputs, act_out;
    const float *weight, *bias;          // [rows][inputs], [rows] or null
    const int8_t* bytes;                 // null, or [rows][inputs] that `weight`, a scale of every row, goes with
};

// Selected channels, normalised and activated, as contiguous (C, H, W).
struct Store {
    Planes src;
    float* dst;
    Geometry size;
    int32_t act;
    const int32_t* index;
    const float *scale, *shift;          // or both null
};

struct Kernels {
    const char* name;
    int64_t lanes;
    void (*select)(const Select&, int64_t begin, int64_t end, float* scratch);   // scratch: select_scratch floats
    void (*spatial)(const Spatial&, int64_t begin, int64_t end, float* scratch);  // of bytes: spatial_scratch floats
    void (*split)(const Split&, int64_t begin, int64_t end);                     // channels
    void (*maximum)(const Maximum&, int64_t begin, int64_t end);                 // channels
    void (*pool)(const Pool&, int64_t begin, int64_t end);                       // channels
    void (*excite)(const Excite&);
    void (*normalise)(const Normalise&, int64_t begin, int64_t end);             // channels
    void (*average)(const Average&, int64_t begin, int64_t end);                 // channels
    void (*linear)(const Linear&, int64_t begin, int64_t end);                   // rows
    void (*store)(const Store&, int64_t begin, int64_t end);                     // channels
};

constexpr int64_t kMaxLanes = 16;
constexpr int64_t kMaxTile = 8;  // vectors side by side in one tile
constexpr int64_t kPanel = 4096;  // floats of packed inputs that stay in the first-level cache
inline int64_t select_scratch(int64_t inputs) { return inputs * kMaxTile * kMaxLanes + kPanel; }

// Positions of a 3x3 convolution of bytes whose inputs are packed at once, with a row more on either side.
inline int64_t spatial_positions(const Spatial& s) {
    int64_t positions = kPanel / ((s.inputs + 3) / 4 * s.planes()), rows = 4 * s.size.row();
    return ((positions < rows ? rows : positions) + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
}
inline int64_t spatial_scratch(const Spatial& s) {
    return (s.inputs + 3) / 4 * s.planes() * (spatial_positions(s) + 2 * s.size.row() + 2 + kMaxLanes);
}

// Ranges of positions begin at multiples of this, so that no two of them write one vector.
constexpr int64_t kStep = 16;

extern const Kernels kBaselineKernels;
#ifdef CNV2_X86
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
#elif defined(CNV2_DOTPROD)
extern const Kernels kDotprodKernels;
#endif

// The fastest kernels that this processor runs, or those named by the environment variable CNV2_KERNELS; throws Refusal
// where it cannot run those.
const Kernels& kernels();

}  // namespace cnv2
