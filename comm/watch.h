// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

// What each rank waits for, and who is to blame when nobody can go on (docs/cluster.md). Every
// operation of a Communicator is written down here before it may block; the ranks' watchdogs
// (comm/watchdog.h) tell each other, and diagnose() reads all of it.
namespace gradus::comm {

enum class WaitKind : int32_t {
  kNone,        // computes
  kCollective,  // until all ranks [first, first + count) have entered the same operation
  kSend,        // until rank `first` receives
  kReceive,     // until rank `first` sends
  kSwap,        // until rank `first` swaps with this one
  kReceiveAny,  // until any rank of [first, first + count) sends
  kLeft,        // has ended well
};

struct Wait {
  WaitKind kind = WaitKind::kNone;
  const char* name = "";  // of the operation; lives as long as the program
  int32_t first = 0;      // ranks of the world that are waited for
  int32_t count = 0;
  int32_t tag = 0;      // of a message; see tag_name()
  uint64_t number = 0;  // of a collective: how many its ranks have entered before
};

// What a rank says of itself, as it travels between watchdogs.
struct RankReport {
  int32_t rank = 0;
  WaitKind kind = WaitKind::kNone;
  int32_t first = 0, count = 0, tag = 0;
  int32_t process = 0;  // its id on its host
  uint64_t number = 0;
  int64_t step = 0;      // 0 before the first
  double waiting_s = 0;  // since the operation last moved
  char name[48] = "";    // of the operation
};

// The state of one rank. Thread-safe.
class Watch {
 public:
  explicit Watch(int rank) : rank_(rank) {}

  void begin(const Wait& wait);
  void end();
  // The present operation moved on (a part of a long message went through).
  void moved();
  void set_step(int64_t step);
  void leave();  // from now on the rank counts as ended
  RankReport report() const;

  // Ranks that are gone while the rest goes on; see WatchdogOptions::may_lose.
  void set_lost(int rank);
  bool is_lost(int rank) const;
  size_t num_lost() const;

 private:
  using Clock = std::chrono::steady_clock;

  mutable std::mutex mutex_;
  const int rank_;
  Wait wait_;
  Clock::time_point moved_ = Clock::now();
  int64_t step_ = 0;
  std::set<int> lost_;
};

// Writes a wait down for as long as it lives.
class WaitScope {
 public:
  WaitScope(Watch& watch, const Wait& wait) : watch_(watch) { watch_.begin(wait); }
  ~WaitScope() { watch_.end(); }
  WaitScope(const WaitScope&) = delete;
  WaitScope& operator=(const WaitScope&) = delete;

 private:
  Watch& watch_;
};

// A rank as another sees it.
struct Sighting {
  RankReport report;     // the newest that came
  double silent_s = 0;   // since then
  bool is_gone = false;  // its process no longer exists
  std::string host{};
};

struct Diagnosis {
  std::vector<int> culprits;  // silent ranks, or those that wait for each other
  std::string headline;       // names them, in one line
};

// Whether some rank can no longer go on: one that is gone or has been silent for `limit_s`; or
// ranks that wait for each other, directly or through others, and have not moved for `limit_s`. A
// rank that computes is never stuck, however long others wait for it. `ranks` is the world, by
// rank; those in `lost` are not there any more.
std::optional<Diagnosis> diagnose(std::span<const Sighting> ranks, double limit_s,
                                  const std::set<int>& lost = {});

// "rank 0 waits for rank 1 in 'gradient sum' (receive, tag tree) at step 3, 8.4 s by now".
std::string describe(std::span<const Sighting> ranks, int rank, double limit_s);

}  // namespace gradus::comm
