// Measures what instructions take.
#pragma once

#include <chrono>
#include <cstdint>

namespace cnv2 {

// Adds the time until the end of a scope to a sum, where there is one.
class Stopwatch {
  public:
    explicit Stopwatch(int64_t* sum) : sum_(sum) {
        if (sum_) *sum_ -= now();
    }
    ~Stopwatch() {
        if (sum_) *sum_ += now();
    }
    Stopwatch(const Stopwatch&) = delete;
    Stopwatch& operator=(const Stopwatch&) = delete;

  private:
    static int64_t now() {
        return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

    int64_t* sum_;
};

}  // namespace cnv2
