// What goes wrong, and how it is told across the C interfaces.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

namespace cnv2 {

// What is wrong with a program, its weights or its input, in one sentence.
struct Refusal : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] inline void refuse(const std::string& what) { throw Refusal(what); }

// Calls `tell` with the reason of the exception that is being handled; allocates nothing.
template <typename Tell>
auto tell_failure(const Tell& tell) noexcept {
    try {
        throw;
    } catch (const std::bad_alloc&) {
        return tell("there is not enough memory for the maps");
    } catch (const std::exception& error) {
        return tell(error.what());
    } catch (...) {
        return tell("the call ended for a reason that it does not tell");
    }
}

// Builds for tests fail where they are told to (see tests/kernels/faults.cpp); others do nothing here.
#ifdef CNV2_TESTING
void fault_point();
void poison(float* data, int64_t floats);
#else
inline void fault_point() {}
inline void poison(float*, int64_t) {}
#endif

}  // namespace cnv2
