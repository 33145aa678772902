#include "memory.h"

#include <new>
#include <vector>

#include "failure.h"

namespace cnv2 {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr int64_t kMostKept = (64 << 20) / sizeof(float);  // a larger workspace is not kept

// As many as were ever used at once. These outlive threads that run while the process ends.
std::vector<Workspace>& kept = *new std::vector<Workspace>;

}  // namespace

std::mutex& bookkeeping = *new std::mutex;

void Free::operator()(float* data) const { ::operator delete(data, kAlignment); }

Workspace take_workspace(int64_t floats) {
    Workspace taken;
    {
        std::lock_guard<std::mutex> lock(bookkeeping);
        for (size_t i = 0; i < kept.size() && !taken.data; ++i)
            if (kept[i].size >= floats) {
                taken = std::move(kept[i]);
                kept.erase(kept.begin() + i);
            }
        if (!taken.data && !kept.empty()) kept.pop_back();
    }
    if (!taken.data)
        taken = {std::unique_ptr<float, Free>(static_cast<float*>(::operator new(size_t(floats) * sizeof(float), kAlignment))),
                 floats};
    poison(taken.data.get(), taken.size);
    return taken;
}

void give_back(Workspace workspace) noexcept {
    if (workspace.size > kMostKept) return;
    std::lock_guard<std::mutex> lock(bookkeeping);
    try {
        kept.push_back(std::move(workspace));
    } catch (const std::bad_alloc&) {  // then it is freed
    }
}

}  // namespace cnv2
