#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#include "memory.h"

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
                for (; workers_ < helpers; ++workers_) add_worker();
            } catch (...) {
                helpers = workers_;  // no more threads are to be had
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
        std::thread([this, seen = round_.load()]() mutable {
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
        }).detach();
    }

    void work() {
        for (int64_t i; (i = next_.fetch_add(1)) < count_;) task_.run(task_.self, i);
    }

    std::mutex calls_, mutex_;
    std::condition_variable wake_;
    Task task_{};
    int64_t workers_ = 0, count_ = 0, tickets_ = 0;
    std::atomic<int64_t> next_{0}, pending_{0};
    std::atomic<uint64_t> round_{0};
};

// Never destroyed: workers may still look at it when the process ends.
alignas(Pool) char place[sizeof(Pool)];
Pool& pool = *new (place) Pool;

#if !defined(_WIN32)
// A child of a fork has none of the pool's threads, and what they had locked stays locked: it begins with a new pool. All
// else that calls share is whole, because the lock around it is held while the process forks.
const int registered = pthread_atfork([] { bookkeeping.lock(); }, [] { bookkeeping.unlock(); },
                                      [] {
                                          bookkeeping.unlock();
                                          new (place) Pool;
                                      });
#endif

}  // namespace

Executor pool_executor(int64_t threads) {
    static thread_local int64_t wanted;
    wanted = threads < 1 ? 1 : threads > 1024 ? 1024 : threads;
    return {[](void* context, const Task& task, int64_t count) { pool.run(task, count, *static_cast<int64_t*>(context)); },
            &wanted, wanted};
}

}  // namespace cnv2
