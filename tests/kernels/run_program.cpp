// Runs a plan many times on several threads that call at once, as the thread sanitizer wants to see it.
// Arguments: a file of int32 (counts of words, weights; batch, channels, height, width; shape of a result), plan, weights,
// images one after the other; the number of threads.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

extern "C" int32_t cnv2_run(const int32_t*, int64_t, const float*, int64_t, const float*, int64_t, int64_t, int64_t, int64_t,
                            float*, const int64_t*, int64_t, char*, int64_t);

int main(int, char** arguments) {
    std::FILE* file = std::fopen(arguments[1], "rb");
    int32_t head[9];
    if (!file || std::fread(head, 4, 9, file) != 9) return 2;
    std::vector<int32_t> plan(head[0]);
    std::vector<float> weights(head[1]), images(int64_t(head[2]) * head[3] * head[4] * head[5]);
    bool whole = std::fread(plan.data(), 4, plan.size(), file) == plan.size() &&
                 std::fread(weights.data(), 4, weights.size(), file) == weights.size() &&
                 std::fread(images.data(), 4, images.size(), file) == images.size();
    std::fclose(file);
    if (!whole) return 2;
    int64_t shape[] = {head[6], head[7], head[8]}, threads = std::atoi(arguments[2]);
    auto call = [&](int64_t batch) {
        std::vector<float> result(batch * shape[0] * shape[1] * shape[2]);
        char message[512];
        for (int i = 0; i < 20; ++i)
            if (cnv2_run(plan.data(), head[0], weights.data(), head[1], images.data(), batch, head[3], head[4], head[5],
                         result.data(), shape, threads, message, sizeof(message)))
                std::exit((std::puts(message), 3));
    };
    std::thread other(call, 1);
    call(head[2]);
    other.join();
    return 0;
}
