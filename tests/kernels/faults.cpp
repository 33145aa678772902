// Added to the kernels where they are built with CNV2_TESTING: the n-th allocation or instruction from now on fails, and
// workspaces hold NaN before they are written.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>

namespace {

std::atomic<int64_t> left{0};  // until one fails; not positive where none will

bool is_due() { return left.load() > 0 && left.fetch_sub(1) == 1; }

void* allocate(std::size_t bytes, std::size_t alignment = 0) {
    if (is_due()) return nullptr;
    return alignment ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment) : std::malloc(bytes);
}

void* or_throw(void* data) { return data ? data : throw std::bad_alloc(); }

}  // namespace

extern "C" __attribute__((visibility("default"))) void cnv2_fail_at(int64_t event) { left = event; }
extern "C" __attribute__((visibility("default"))) int32_t cnv2_has_failed() { return left.load() <= 0; }

namespace cnv2 {

void fault_point() {
    if (is_due()) throw std::runtime_error("an instruction failed as it was told to");
}

void poison(float* data, int64_t floats) {
    for (int64_t i = 0; i < floats; ++i) data[i] = std::numeric_limits<float>::quiet_NaN();
}

}  // namespace cnv2

void* operator new(std::size_t bytes) { return or_throw(allocate(bytes)); }
void* operator new(std::size_t bytes, std::align_val_t by) { return or_throw(allocate(bytes, std::size_t(by))); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes); }
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, std::size_t, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, const std::nothrow_t&) noexcept { std::free(data); }
