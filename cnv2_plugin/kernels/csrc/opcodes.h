// The numbers that programs are written in. kernels/program.py reads this file too, so every name has its value beside it.
#pragma once

#include <cstdint>

namespace cnv2 {

enum Format : int32_t { kMagic = 0x434e5632, kVersion = 3 };  // first word of a program; version of the C interface

enum Operation : int32_t {
    kLoad = 0, kPool = 1, kZero = 2, kSelect = 3, kSpatial = 4, kExcite = 5, kSplit = 6, kMaximum = 7, kStore = 8,
    kAverage = 9, kLinear = 10, kNormalise = 11, kExciteBytes = 12
};
constexpr int32_t kOperations = kExciteBytes + 1;

enum Loading : int32_t { kPlain = 0, kPooled = 1, kSplitted = 2 };
enum Flag : int32_t { kAccumulate = 1, kBias = 2, kAffine = 4, kBytes = 8 };  // kBytes: of convolutions and linear layers

enum Activation : int32_t { kIdentity = 0, kReLU = 1, kReLU6 = 2, kHardswish = 3 };  // names of classes of torch.nn
constexpr int32_t kFlags = kAccumulate | kBias | kAffine;
constexpr int32_t kActivations = kHardswish + 1;

enum Change : int32_t { kHalvedDown = 0, kHalvedUp = 1, kToOnePixel = 2 };  // of height and width, for the result's shape

// Rows whose weights lie side by side, and most inputs of one group of a 3x3 convolution.
// Weights of bytes are at most kMostWeight, so that int16 holds two products with 255; kMostByteInputs of them fit int32.
// Those whose products are floats are at most kMostLoneWeight.
enum Size : int32_t { kBlock = 4, kMostSpatialInputs = 256, kMostWeight = 64, kMostByteInputs = 131072, kMostLoneWeight = 127 };

}  // namespace cnv2
