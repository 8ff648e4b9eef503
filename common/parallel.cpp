// SPDX-License-Identifier: Apache-2.0
#include "common/parallel.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.h"

namespace gradus {
namespace {

// Workers spin this many pauses for the next job before they sleep: about 50 us, longer than the
// gap between two kernels of one forward pass, so that a decode step never pays for a wake-up.
constexpr int kSpinPauses = 2000;

// Inside a body of parallel_for or a SerialSection.
thread_local bool is_serial = false;

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads) {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ~ThreadPool() {
    stop_ = true;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    // Two threads of the program may ask at once; one job at a time.
    std::lock_guard lock(run_mutex_);
    body_ = &body;
    count_ = count;
    grain_ = grain;
    next_.store(0, std::memory_order_relaxed);
    error_ = nullptr;
    gate_.store(kOpen, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    take_ranges();
    // Workers that have not come by now are not waited for: on a busy machine they may sleep for
    // long.
    gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; gate_.load(std::memory_order_acquire) != 0; ++spins) pause_or_yield(spins);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  // The gate counts the workers inside a job (in steps of kOne) and says whether more may enter.
  static constexpr uint64_t kOpen = 1, kOne = 2;

  static void pause_or_yield(int spins) {
    if (spins < kSpinPauses) {
      _mm_pause();
    } else {
      sched_yield();
    }
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      uint64_t epoch = epoch_.load(std::memory_order_acquire);
      for (int spins = 0; epoch == seen; epoch = epoch_.load(std::memory_order_acquire)) {
        if (++spins < kSpinPauses) {
          _mm_pause();
        } else {
          epoch_.wait(seen, std::memory_order_acquire);
        }
      }
      seen = epoch;
      if (stop_) return;
      uint64_t gate = gate_.load(std::memory_order_relaxed);
      while ((gate & kOpen) != 0) {
        if (gate_.compare_exchange_weak(gate, gate + kOne, std::memory_order_acq_rel)) {
          take_ranges();
          gate_.fetch_sub(kOne, std::memory_order_release);
          break;
        }
      }
    }
  }

  void take_ranges() {
    is_serial = true;
    for (;;) {
      const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= count_) break;
      try {
        (*body_)(begin, std::min(count_, begin + grain_));
      } catch (...) {
        std::lock_guard lock(error_mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
    is_serial = false;
  }

  std::vector<std::thread> workers_;
  std::mutex run_mutex_, error_mutex_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<uint64_t> gate_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int64_t, int64_t)>* body_ = nullptr;
  int64_t count_ = 0, grain_ = 1;
  std::exception_ptr error_;
};

int available_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::unique_ptr<ThreadPool>& pool() {
  static std::unique_ptr<ThreadPool> instance;
  return instance;
}

ThreadPool& pool_or_default() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (!pool()) pool() = std::make_unique<ThreadPool>(available_processors());
  });
  return *pool();
}

}  // namespace

void set_num_threads(int num_threads) {
  GRADUS_CHECK(num_threads >= 1, "set_num_threads needs at least 1");
  pool() = std::make_unique<ThreadPool>(num_threads);
}

int num_threads() { return pool_or_default().size(); }

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  GRADUS_CHECK(grain >= 1, "parallel_for needs a grain of at least 1");
  if (count <= 0) return;
  ThreadPool& threads = pool_or_default();
  if (is_serial || count <= grain || threads.size() == 1) {
    body(0, count);
    return;
  }
  threads.run(count, grain, body);
}

SerialSection::SerialSection() : was_serial_(std::exchange(is_serial, true)) {}
SerialSection::~SerialSection() { is_serial = was_serial_; }

}  // namespace gradus
