// The pool of threads: ranges of a job are handed out by a counter; see threads.h for what callers may expect.
#include "qvl/threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qvl {
namespace {

// About 20 to 60 microseconds on the machines we know: longer than from one op of a token to the next, shorter than
// anybody notices.
constexpr int kSpins = 2000;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

struct Job {
  Body body;
  void* context;
  int64_t count, grain;
};

thread_local bool inside = false;  // a body is running in this thread

class Pool {
 public:
  explicit Pool(int count) : count_(count) {
    try {
      for (int i = 1; i < count; ++i) workers_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {  // a limit of threads: whoever is there does the work
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(sleep_);
      stop_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int count() const { return count_; }

  void run(const Job& job) {
    std::lock_guard<std::mutex> one_at_a_time(callers_);
    job_ = job;
    next_.store(0, std::memory_order_relaxed);
    open_.store(true, std::memory_order_seq_cst);
    generation_.fetch_add(1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
    take(job);
    // Nothing is left to hand out. Who is still at work is waited for, who has not come yet is not: on a busy machine
    // a worker may get its core late.
    open_.store(false, std::memory_order_seq_cst);
    for (int spins = 0; inside_.load(std::memory_order_seq_cst) > 0; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  void take(const Job& job) {
    inside = true;
    for (;;) {
      const int64_t begin = next_.fetch_add(job.grain, std::memory_order_relaxed);
      if (begin >= job.count) break;
      const int64_t end = begin + job.grain;
      job.body(job.context, begin, end < job.count ? end : job.count);
    }
    inside = false;
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      seen = wait_for_more_than(seen);
      if (stop_.load(std::memory_order_relaxed)) return;
      // Counted before looking: either run() sees this worker and waits, or the worker sees the job closed.
      inside_.fetch_add(1, std::memory_order_seq_cst);
      if (open_.load(std::memory_order_seq_cst)) take(job_);
      inside_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  uint64_t wait_for_more_than(uint64_t seen) {
    for (int spins = 0; spins < kSpins; ++spins) {
      const uint64_t now = generation_.load(std::memory_order_acquire);
      if (now != seen) return now;
      pause();
    }
    std::unique_lock<std::mutex> lock(sleep_);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != seen; });
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
    return generation_.load(std::memory_order_acquire);
  }

  const int count_;
  std::vector<std::thread> workers_;
  std::mutex callers_, sleep_;
  std::condition_variable wake_;
  Job job_{};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> inside_{0};
  alignas(64) std::atomic<bool> open_{false};
  alignas(64) std::atomic<uint64_t> generation_{0};
  alignas(64) std::atomic<int> sleeping_{0};
};

std::mutex making;
Pool* pool = nullptr;
int wanted = 1;

// The threads of a pool do not exist in a forked child. Its memory is given up there, since they cannot be joined.
void forget_pool() {
  pool = nullptr;
  inside = false;
  new (&making) std::mutex;
}

Pool& current() {
  std::lock_guard<std::mutex> lock(making);
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
#endif
  if (!pool) pool = new Pool(wanted);
  return *pool;
}

struct Scratch {
  void* memory[kSlots] = {};
  size_t bytes[kSlots] = {};
  ~Scratch() {
    for (void* each : memory) std::free(each);
  }
};

}  // namespace

int threads() {
  std::lock_guard<std::mutex> lock(making);
  return wanted;
}

void set_threads(int count) {
  std::lock_guard<std::mutex> lock(making);
  if (count < 1) count = 1;
  if (count == wanted) return;
  wanted = count;
  delete pool;
  pool = nullptr;
}

void run_parallel(int64_t count, int64_t grain, Body body, void* context) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  if (inside || count <= grain) {
    const bool before = inside;
    inside = true;
    for (int64_t begin = 0; begin < count; begin += grain) {
      body(context, begin, begin + grain < count ? begin + grain : count);
    }
    inside = before;
    return;
  }
  current().run({body, context, count, grain});
}

void* scratch(int slot, size_t bytes) {
  static thread_local Scratch mine;
  if (bytes == 0) bytes = 1;  // nothing is no error: nullptr says that there is no memory
  if (mine.bytes[slot] < bytes) {
    std::free(mine.memory[slot]);
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    mine.memory[slot] = std::aligned_alloc(64, rounded);
    mine.bytes[slot] = mine.memory[slot] ? rounded : 0;
  }
  return mine.memory[slot];
}

}  // namespace qvl
