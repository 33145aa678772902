// How work is spread over threads: by the runtime that called, or by a pool of our own.
#pragma once

#include <cstdint>

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
    Task task{[](void* self, int64_t i) { (*static_cast<const Function*>(self))(i); }, const_cast<Function*>(&function)};
    executor.run(executor.context, task, count);
}

}  // namespace cnv2
