// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace gradus::comm {

struct WatchdogOptions {
  double stuck_after_s = 8.0;  // > 4 beats; docs/cluster.md says what to weigh
  double beat_s = 0.5;         // between two signs of life
  // Ranks whose death the others survive: they become lost (Communicator::is_lost).
  std::function<bool(int rank)> may_lose{};
  // Called once, in the watchdog's thread, with the culprits and then who waits for whom, a line
  // each. The main thread may be blocked for good: end the process here.
  std::function<void(const std::string& report)> on_stuck{};
};

// A thread of every rank that tells the others, over UDP, what its rank does (comm/watch.h) and
// watches what they tell. It works while the main thread is blocked inside MPI, costs a datagram of
// about 130 bytes for each pair of ranks and beat, and never touches MPI itself. A process that was
// stopped and goes on again, or a host that was suspended, does not take the others for dead.
// Thread-safe.
class Watchdog {
 public:
  // Collective over `world`, which must be that of all processes and outlive it. Unavailable if no
  // socket can be had.
  static Result<std::unique_ptr<Watchdog>> start(Communicator& world, WatchdogOptions options);
  // Tells the others that this rank ends well.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  class Impl;
  explicit Watchdog(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace gradus::comm
