// A program that was read and checked, for images of one size.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "run.h"

namespace cnv2 {

struct Map {
    int32_t channels = 0, slot = 0;
    bool padded = false;
    Geometry size{0, 0};
    int64_t front = 0, stride = 0;
};

struct Instruction {
    int32_t operation = 0;
    int32_t src = -1, dst = -1, followers = 0;
    int32_t loading = kPlain;
    bool first = false;                   // its target map takes its slot from another one
    Select select{};
    Spatial spatial{};
    Excite excite{};
    Store store{};
    Normalise normalise{};
    Average average{};
    Linear linear{};
    int32_t rows = 0;                     // of a linear layer
    int64_t bytes[2] = {-1, -1};          // words where weights begin that may have any value
};

// Words from `begin` to in front of `end`.
struct Range {
    int64_t begin, end;
};

struct Program {
    std::vector<Map> maps;
    std::vector<Instruction> instructions;
    std::vector<int64_t> slots;           // floats
    OutputShape output{0, 0, 0};
    int64_t scratch = 0, vector_scratch = 0;
    std::vector<Range> bytes;             // of weights that may have any value, in order
};

inline int64_t round_up(int64_t value) { return (value + kMaxLanes - 1) / kMaxLanes * kMaxLanes; }

// Names words and weights by address, and weights among the words by their place.
struct Checked {
    std::vector<int32_t> words;
    const float* weights;
    int64_t weight_count, channels;
    Geometry size;
    Program program;
};

// Reads a program; throws Refusal unless every word of it fits the others, the weights and the images.
Program parse(const int32_t* program, int64_t words, const float* weights, int64_t weight_count, int64_t channels,
              Geometry size);

}  // namespace cnv2
