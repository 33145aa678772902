#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace cnv2 {
namespace {

constexpr int kSpins = 20000;  // a worker looks out for work that long (some 20 microseconds) before it sleeps

// Serves one call at a time; a second caller works alone. Indices are handed out one by one.
class Pool {
  public:
    void run(const Task& task, int64_t count, int64_t threads) {
        std::unique_lock<std::mutex> alone(calls_, std::try_to_lock);
        if (!alone.owns_lock()) {
            for (int64_t i = 0; i < count; ++i) task.run(task.self, i);
            return;
        }
        int64_t helpers = (threads < count ? threads : count) - 1;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            try {
                while (int64_t(workers_.size()) < helpers) add_worker();
            } catch (const std::system_error&) {
                helpers = int64_t(workers_.size());  // no more threads are to be had
            }
            task_ = task;
            count_ = count;
            next_ = 0;
            pending_ = helpers;
            tickets_ = helpers;
            ++round_;
        }
        wake_.notify_all();
        work();
        while (pending_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    }

  private:
    void add_worker() {
        workers_.emplace_back([this, seen = round_.load()]() mutable {
            for (;;) {
                for (int i = 0; i < kSpins && round_.load(std::memory_order_acquire) == seen; ++i) {
                }
                {
                    std::unique_lock<std::mutex> lock(mutex_);
                    wake_.wait(lock, [&] { return round_ != seen; });
                    seen = round_;
                    if (tickets_ == 0) continue;
                    --tickets_;
                }
                work();
                pending_.fetch_sub(1, std::memory_order_acq_rel);
            }
        });
        workers_.back().detach();
    }

    void work() {
        for (int64_t i; (i = next_.fetch_add(1)) < count_;) task_.run(task_.self, i);
    }

    std::mutex calls_, mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
    Task task_{};
    int64_t count_ = 0, tickets_ = 0;
    std::atomic<int64_t> next_{0}, pending_{0};
    std::atomic<uint64_t> round_{0};
};

// Never destroyed: workers may still look at it when the process ends. A forked child has none of the threads and
// takes a new pool.
Pool* pool = new Pool;

#if !defined(_WIN32)
const int registered = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif

}  // namespace

Executor pool_executor(int64_t threads) {
    static thread_local int64_t wanted;
    wanted = threads < 1 ? 1 : threads > 1024 ? 1024 : threads;
    return {[](void* context, const Task& task, int64_t count) { pool->run(task, count, *static_cast<int64_t*>(context)); },
            &wanted, wanted};
}

}  // namespace cnv2
