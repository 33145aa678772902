// Memory that calls share, and the lock around all that they share.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

namespace cnv2 {

// Held for moments only, and while the process forks (see threads.cpp), so that a child finds nothing half done.
extern std::mutex& bookkeeping;

struct Free {
    void operator()(float* data) const;
};

struct Workspace {
    std::unique_ptr<float, Free> data;
    int64_t size = 0;  // floats
};

// A workspace of at least so many floats, aligned for all kernels, with anything in it. Throws std::bad_alloc.
Workspace take_workspace(int64_t floats);

// Keeps a workspace for later calls, so that they touch no fresh pages, or frees it where it is large.
void give_back(Workspace workspace) noexcept;

}  // namespace cnv2
