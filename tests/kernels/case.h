// A program with its weights and images, as test_builds.py writes them: a file of int32 (counts of words, weights; batch,
// channels, height, width; shape of a result), program, weights, images one after the other.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" int32_t cnv2_run(const int32_t*, int64_t, const float*, int64_t, const float*, int64_t, int64_t, int64_t, int64_t,
                            float*, const int64_t*, int64_t, char*, int64_t);

struct Case {
    int32_t head[9];
    std::vector<int32_t> program;
    std::vector<float> weights, images;

    explicit Case(const char* path) {
        std::FILE* file = std::fopen(path, "rb");
        if (!file || std::fread(head, 4, 9, file) != 9) std::exit(2);
        program.resize(head[0]);
        weights.resize(head[1]);
        images.resize(int64_t(head[2]) * head[3] * head[4] * head[5]);
        bool whole = std::fread(program.data(), 4, program.size(), file) == program.size() &&
                     std::fread(weights.data(), 4, weights.size(), file) == weights.size() &&
                     std::fread(images.data(), 4, images.size(), file) == images.size();
        std::fclose(file);
        if (!whole) std::exit(2);
    }

    // The result of the first images; ends the process where there is none.
    std::vector<float> run(int64_t batch, int64_t threads) const {
        int64_t shape[] = {head[6], head[7], head[8]};
        std::vector<float> result(batch * shape[0] * shape[1] * shape[2]);
        char message[512];
        if (cnv2_run(program.data(), head[0], weights.data(), head[1], images.data(), batch, head[3], head[4], head[5],
                     result.data(), shape, threads, message, sizeof(message)))
            std::exit((std::puts(message), 3));
        return result;
    }
};
