// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

namespace gradus {

// The process's pool of compute threads. Sized once, before first use, to cores / ranks on the host
// (default: the processors this process may run on). Results never depend on the number of threads:
// work items are independent and each is computed by one thread.
void set_num_threads(int num_threads);
int num_threads();

// Calls `body(begin, end)` on disjoint ranges that cover [0, count), from all threads, and returns
// when all are done. Ranges are multiples of `grain` (>= 1) but for the last and handed out
// dynamically. Runs in the calling thread alone when one grain suffices or when called from inside
// a body. An exception of a body is rethrown here.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// While one lives, parallel_for runs in the thread that made it alone: for work beside the main
// loop, such as writing a checkpoint, which must not hold the pool when the next kernel wants it.
class SerialSection {
 public:
  SerialSection();
  SerialSection(const SerialSection&) = delete;
  SerialSection& operator=(const SerialSection&) = delete;
  ~SerialSection();

 private:
  bool was_serial_;
};

}  // namespace gradus
