// The kernels behind plain C functions, for any language that can load a library.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "kernels.h"
#include "run.h"

#if defined(_WIN32)
#define CNV2_EXPORT extern "C" __declspec(dllexport)
#else
#define CNV2_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

cnv2::Programs& programs = *new cnv2::Programs;  // outlives threads that run while the process ends

// Writes what is being thrown to a message of some size, if there is one; returns 1.
int32_t failure(char* message, int64_t size) {
    return cnv2::tell_failure([&](const char* reason) {
        if (message && size > 0) std::snprintf(message, size_t(size), "%s", reason);
        return 1;
    });
}

}  // namespace

CNV2_EXPORT int32_t cnv2_version() { return cnv2::kVersion; }

// Null where CNV2_KERNELS names kernels that this processor does not run.
CNV2_EXPORT const char* cnv2_instruction_set() {
    try {
        return cnv2::kernels().name;
    } catch (...) {
        return nullptr;
    }
}

// Images and result are contiguous (N, C, H, W); shape is that of the result for one image, and refused if it is not.
// Returns 0, or 1 with the reason in message.
CNV2_EXPORT int32_t cnv2_run(const int32_t* program, int64_t words, const float* weights, int64_t weight_count,
                             const float* images, int64_t batch, int64_t channels, int64_t height, int64_t width,
                             float* output, const int64_t* shape, int64_t threads, char* message, int64_t size) {
    try {
        auto allocate = [&](const cnv2::OutputShape& made) {
            if (made.channels != shape[0] || made.height != shape[1] || made.width != shape[2])
                throw cnv2::Refusal("the program gives another shape of result than was asked for");
            return output;
        };
        cnv2::Input input{images, batch, channels, height, width};
        auto checked = programs.get(program, words, weights, weight_count, input);
        cnv2::run(*checked, program, input, allocate, cnv2::pool_executor(threads));
        return 0;
    } catch (...) {
        return failure(message, size);
    }
}

// As cnv2_run on one thread, but returns how many instructions there are, or -1 with the reason in message. Kinds of
// instructions and the nanoseconds that each took for all images go to memory for as many as the program has words.
CNV2_EXPORT int64_t cnv2_profile(const int32_t* program, int64_t words, const float* weights, int64_t weight_count,
                                 const float* images, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                 int32_t* operations, int64_t* nanoseconds, char* message, int64_t size) {
    try {
        int64_t count = 0;
        cnv2::Input input{images, batch, channels, height, width};
        auto checked = programs.get(program, words, weights, weight_count, input);
        cnv2::measure(*checked, program, input, [&](const std::vector<int32_t>& kinds) {
            count = int64_t(kinds.size());
            std::copy(kinds.begin(), kinds.end(), operations);
            std::fill_n(nanoseconds, count, 0);
            return nanoseconds;
        });
        return count;
    } catch (...) {
        return -failure(message, size);
    }
}
