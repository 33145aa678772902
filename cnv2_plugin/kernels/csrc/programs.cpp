// Programs that were checked before.
#include <algorithm>
#include <mutex>

#include "memory.h"
#include "program.h"

namespace cnv2 {
namespace {

constexpr size_t kMostKept = 16;

// Bytes that may have any value are left out: they are the larger part of a small file, and read where they are.
bool has_words(const Checked& kept, const int32_t* words, int64_t count) {
    if (int64_t(kept.words.size()) != count) return false;
    const int32_t* own = kept.words.data();
    int64_t at = 0;
    for (const Range& bytes : kept.program.bytes) {
        if (!std::equal(own + at, own + bytes.begin, words + at)) return false;
        at = bytes.end;
    }
    return std::equal(own + at, own + count, words + at);
}

bool is(const Checked& kept, const int32_t* words, int64_t count, const float* weights, int64_t weight_count,
        const Input& input) {
    return kept.weights == weights && kept.weight_count == weight_count && kept.channels == input.channels &&
           kept.size.height == input.height && kept.size.width == input.width && has_words(kept, words, count);
}

}  // namespace

std::shared_ptr<const Checked> Programs::get(const int32_t* words, int64_t count, const float* weights,
                                             int64_t weight_count, const Input& input) {
    {
        std::lock_guard<std::mutex> lock(bookkeeping);
        for (auto it = kept_.rbegin(); it != kept_.rend(); ++it) {
            if (!is(**it, words, count, weights, weight_count, input)) continue;
            std::rotate(kept_.rbegin(), it, it + 1);
            return kept_.back();
        }
    }
    Geometry size{input.height, input.width};
    auto made = std::make_shared<Checked>(
        Checked{std::vector<int32_t>(words, words + count), weights, weight_count, input.channels, size, {}});
    made->program = parse(made->words.data(), count, weights, weight_count, input.channels, size);
    std::shared_ptr<const Checked> oldest;  // freed when nobody waits for the lock
    std::lock_guard<std::mutex> lock(bookkeeping);
    if (kept_.size() == kMostKept) {
        oldest = std::move(kept_.front());
        kept_.erase(kept_.begin());
    }
    kept_.push_back(made);
    return made;
}

}  // namespace cnv2
