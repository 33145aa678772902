// A part of a network as a list of instructions on maps, checked before anything runs.
//
// The program is an array of int32 (see program.cpp for the words of every instruction), the weights one array of floats
// that instructions name by offset. Neither depends on the size of the images or on the processor.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "failure.h"
#include "threads.h"

namespace cnv2 {

struct Input {
    const float* data;
    int64_t batch, channels, height, width;
};

struct OutputShape {
    int64_t channels, height, width;
};

// A program with the size of its images, read and checked.
struct Checked;

// Programs that were checked before, so that this is done once for a program and a size of images, not for every image. A
// program is known again by all of its words but bytes of weights that may have any value, which are read where they are;
// its own copy of the others is what runs. Several threads may ask at once.
class Programs {
  public:
    // Throws Refusal where the program, its weights or the images do not fit.
    std::shared_ptr<const Checked> get(const int32_t* words, int64_t count, const float* weights, int64_t weight_count,
                                       const Input& input);

  private:
    std::vector<std::shared_ptr<const Checked>> kept_;  // the last one used last
};

// Runs a program, given with its words, on contiguous images (N, C, H, W); `allocate` is told the shape of one image's result and gives the
// memory for all of them. Whatever fails on any thread is thrown here once all threads are done.
void run(const Checked& checked, const int32_t* words, const Input& input, const std::function<float*(const OutputShape&)>& allocate,
         const Executor& executor);

// Runs a program on one thread and adds to each of its instructions the nanoseconds that it took; `begin` is told how many
// instructions there are and what kinds, and gives the memory for the sums.
void measure(const Checked& checked, const int32_t* words, const Input& input,
             const std::function<int64_t*(const std::vector<int32_t>& operations)>& begin);

}  // namespace cnv2
