// How work is spread over threads: by the runtime that called, or by a pool of our own.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

namespace cnv2 {

struct Task {
    void (*run)(void* self, int64_t index);
    void* self;
};

// Calls every index of a task once and returns when all are done.
struct Executor {
    void (*run)(void* context, const Task& task, int64_t count);
    void* context;
    int64_t threads;
};

// Threads kept for later calls; `threads` counts the caller's own.
Executor pool_executor(int64_t threads);

template <typename Function>
void parallel_for(const Executor& executor, int64_t count, const Function& function) {
    if (count < 2 || executor.threads < 2) {
        for (int64_t i = 0; i < count; ++i) function(i);
        return;
    }
    struct Shared {
        const Function& function;
        std::atomic<bool> failed;
        std::exception_ptr failure;
    } shared{function, {false}, nullptr};
    // Nothing may leave a thread of a runtime: the first failure is kept until all threads are done.
    auto one = [](void* self, int64_t i) {
        auto& given = *static_cast<Shared*>(self);
        try {
            given.function(i);
        } catch (...) {
            if (!given.failed.exchange(true)) given.failure = std::current_exception();
        }
    };
    executor.run(executor.context, Task{one, &shared}, count);
    if (shared.failure) std::rethrow_exception(shared.failure);
}

}  // namespace cnv2
