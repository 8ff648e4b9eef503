// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace gradus::comm::internal {

// Pauses between looks at something that another rank does: short ones first, since most answers
// come at once, then up to 1 ms, so that a long wait leaves its core to whoever computes.
class Backoff {
 public:
  void wait() {
    if (num_waits_++ < 20) {
      std::this_thread::yield();
      return;
    }
    std::this_thread::sleep_for(pause_);
    pause_ = std::min(2 * pause_, std::chrono::microseconds(1000));
  }

 private:
  int num_waits_ = 0;
  std::chrono::microseconds pause_{20};
};

}  // namespace gradus::comm::internal
