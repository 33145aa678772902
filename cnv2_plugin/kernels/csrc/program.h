// A part of a network as a list of instructions on maps, checked before anything runs.
//
// The plan is an array of int32 (see plan.cpp for the words of every instruction), the weights one array of floats
// that instructions name by offset. Neither depends on the size of the images or on the processor.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "threads.h"

namespace cnv2 {

struct Input {
    const float* data;
    int64_t batch, channels, height, width;
};

struct OutputShape {
    int64_t channels, height, width;
};

// What is wrong with a plan, its weights or its input, in one sentence.
struct Refusal : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Runs a plan on contiguous images (N, C, H, W); `allocate` is told the shape of one image's result and gives the memory
// for all of them. Throws Refusal before anything is written.
void run(const int32_t* plan, int64_t words, const float* weights, int64_t weight_count, const Input& input,
         const std::function<float*(const OutputShape&)>& allocate, const Executor& executor);

}  // namespace cnv2
