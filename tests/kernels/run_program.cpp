// Runs a case many times on several threads that call at once, as the thread sanitizer wants to see it.
// Arguments: the case (see case.h), the number of threads.
#include <thread>

#include "case.h"

int main(int, char** arguments) {
    Case one(arguments[1]);
    int64_t threads = std::atoi(arguments[2]);
    auto call = [&](int64_t batch) {
        for (int i = 0; i < 20; ++i) one.run(batch, threads);
    };
    std::thread other(call, 1);
    call(one.head[2]);
    other.join();
    return 0;
}
