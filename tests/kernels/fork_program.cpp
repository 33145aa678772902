// Forks while other threads run a case; every child runs it too, on two threads, and gives the same.
// Arguments: the case (see case.h), the number of forks.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "case.h"

int main(int, char** arguments) {
    Case one(arguments[1]);
    int forks = std::atoi(arguments[2]), answered = 0;
    std::vector<float> expected = one.run(1, 2);
    std::atomic<bool> ends{false};
    auto load = [&](int64_t threads) {
        Case small = one;  // of ever other sizes, so that programs are checked anew and pushed out
        for (int i = 0; !ends; ++i) {
            small.head[4] = small.head[5] = 8 + i % 20;
            small.run(1, threads);
        }
    };
    std::thread others[] = {std::thread(load, 2), std::thread(load, 1), std::thread(load, 1), std::thread(load, 1)};
    for (int i = 0; i < forks; ++i) {
        pid_t child = fork();
        if (!child) {
            alarm(20);
            _exit(one.run(1, 2) == expected ? 7 : 1);
        }
        int status = 0;
        waitpid(child, &status, 0);
        answered += WIFEXITED(status) && WEXITSTATUS(status) == 7;
    }
    ends = true;
    for (std::thread& other : others) other.join();
    std::printf("%d of %d children answered\n", answered, forks);
    return 0;
}
