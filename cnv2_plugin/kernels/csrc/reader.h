#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "failure.h"

namespace cnv2 {

// Reads words one by one and checks what they name.
class Reader {
  public:
    Reader(const int32_t* words, int64_t count, const float* weights, int64_t weight_count)
        : start_(words), word_(words), end_(words + count), weights_(weights), weight_count_(weight_count) {}

    int32_t next(const char* what, int64_t low, int64_t high) {
        if (word_ == end_) refuse(std::string("the program ends where ") + what + " is expected");
        int32_t value = *word_++;
        if (value < low || value > high)
            refuse(std::string("the program gives ") + std::to_string(value) + " for " + what + ", outside of " +
                   std::to_string(low) + " to " + std::to_string(high));
        return value;
    }

    const int32_t* list(const char* what, int64_t count, int64_t below) {
        if (count > end_ - word_) refuse(std::string("the program ends within ") + what);
        uint32_t most = 0;  // of negative words too: they are the largest
        for (int64_t i = 0; i < count; ++i) most = std::max(most, uint32_t(word_[i]));
        if (most >= uint32_t(below))
            refuse(std::string("the program has a channel of ") + what + " outside of the map's " + std::to_string(below));
        const int32_t* start = word_;
        word_ += count;
        return start;
    }

    // Words of four bytes, each from -most to most.
    const int32_t* bytes(const char* what, int64_t count, int most) {
        if (count > end_ - word_) refuse(std::string("the program ends within ") + what);
        int worst = 0;
        for (int64_t i = 0; i < count; ++i)
            for (int byte = 0; byte < 32; byte += 8)
                worst = std::max(worst, std::abs(int(int8_t(uint32_t(word_[i]) >> byte))));
        if (worst > most) refuse(std::string(what) + " have a byte beyond " + std::to_string(most));
        const int32_t* start = word_;
        word_ += count;
        return start;
    }

    // Bytes that may have any value, filled up to words; returns where they begin.
    int64_t any_bytes(const char* what, int64_t count) {
        int64_t words = (count + 3) / 4, begin = word_ - start_;
        if (words > end_ - word_) refuse(std::string("the program ends within ") + what);
        word_ += words;
        return begin;
    }

    const float* floats(const char* what, int64_t count) {
        int64_t offset = next(what, 0, INT32_MAX);
        if (count > weight_count_ || offset > weight_count_ - count)
            refuse(std::string(what) + " reach beyond the " + std::to_string(weight_count_) + " weights");
        return weights_ ? weights_ + offset : nullptr;
    }

    void skip() { next("an unused offset", INT32_MIN, INT32_MAX); }
    bool at_end() const { return word_ == end_; }
    const int32_t* position() const { return word_; }

  private:
    const int32_t *start_, *word_, *end_;
    const float* weights_;
    int64_t weight_count_;
};

}  // namespace cnv2
