// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "rewards/reward_sum.h"

namespace gradus::rewards {

// Scores the responses of a batch while others are still being sampled. What comes out is that of
// RewardSum::score, whatever the order in which responses finish and whatever the threads do:
// rewards depend on nothing else, and the sums are made in the order of the batch.
//
// One caller: begin, finished for each response, finish. The rewards run on the pool's threads, and
// on the caller's within finish().
class ScorePool {
 public:
  struct Seconds {
    double busy = 0;     // in the rewards, over all threads
    double exposed = 0;  // that the caller waited in finish()
  };

  // `rewards` outlives it. Without threads all is done in finish().
  ScorePool(const RewardSum& rewards, int64_t num_threads);
  ScorePool(const ScorePool&) = delete;
  ScorePool& operator=(const ScorePool&) = delete;
  ~ScorePool();

  // The groups of a batch; their trajectories may still be written, until finished() names them.
  // Both stay alive until finish() or cancel() returns.
  void begin(std::span<const Group> groups);

  // Response `sample` of group `group` is there.
  void finished(size_t group, size_t sample);

  // Waits for what was handed over. One breakdown per trajectory, group by group; those of a group
  // that is not whole are without parts, and not scored. Errors are those of RewardSum::combine, of
  // the first group. An exception of a reward is rethrown.
  Result<std::vector<data::RewardBreakdown>> finish();

  // Gives the batch up: returns when no thread looks at it any more. Of no effect after finish().
  void cancel();

  const Seconds& seconds() const { return seconds_; }  // of the last batch, after finish()
  // The same as `prefix`busy_s and `prefix`hidden_fraction, and what the rewards used of services.
  void add_metrics(const std::string& prefix, Metrics& metrics) const;

 private:
  struct Work {
    size_t pack = 0, group = 0, first = 0, count = 0;  // trajectories of the group
  };

  void run();
  // Takes neighbours in the queue that one call can serve, and makes it. The lock is held around.
  void work(std::unique_lock<std::mutex>& lock);

  const RewardSum& rewards_;
  std::span<const Group> groups_;
  std::vector<std::vector<std::vector<JudgedPart>>> parts_;  // [group][reward][sample]
  std::vector<std::vector<bool>> is_finished_;               // [group][sample]
  std::vector<size_t> num_left_;                             // parts that a group still lacks
  // Of the groups that lack none.
  std::vector<std::optional<Result<std::vector<data::RewardBreakdown>>>> combined_;

  std::mutex mutex_;
  std::condition_variable has_work_, is_idle_;
  std::deque<Work> queue_;
  size_t num_running_ = 0;
  bool ends_ = false;
  std::exception_ptr exception_;
  Seconds seconds_;
  std::vector<std::thread> threads_;  // last: they use all of the above
};

}  // namespace gradus::rewards
