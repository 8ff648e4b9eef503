// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "rewards/score_pool.h"
#include "trainer/rollout_work.h"
#include "trainer/run_state.h"

namespace gradus::trainer {

// What the rollout phase needs, beside weights.
struct RolloutSetup {
  rollout::RolloutConfig rollout;
  int64_t overlong_buffer_tokens = 0;  // 0: off
  double overlong_penalty = 0;
};
RolloutSetup rollout_setup(const TrainerConfig& trainer, const rollout::RolloutConfig& rollout);

// What shaping adds to the reward of a response: 0 or less.
double overlong_of(const RolloutSetup& setup, const data::Trajectory& trajectory);

// Samples responses and scores them: the rollout phase of a rank, whether it also trains or not.
// Results depend on weights and requests alone. Not thread-safe. References outlive it.
class RolloutWorker {
 public:
  RolloutWorker(RolloutSetup setup, rollout::Engine& engine, const rewards::RewardSum& rewards,
                std::span<const data::Prompt> prompts);

  // Does the work; `progress(finished)` counts responses. Requests are whole groups of
  // rollout.num_samples; a group of which a response is interrupted stays without rewards. Sets
  // timing_s/gen, timing_s/reward, rollout/preemptions and reward/... .
  Result<std::vector<records::RolloutRecord>> work(
      std::span<const data::RolloutRequest> requests, int64_t step, comm::WeightStamp weights,
      Metrics& metrics, const std::function<void(int64_t)>& progress = {});

 private:
  // Samples what has not ended; hands groups to the pool as their responses finish.
  Status sample(std::span<const data::RolloutRequest> requests, comm::WeightStamp weights,
                std::span<data::Trajectory> trajectories,
                const std::function<void(int64_t)>& progress);
  Status add_reward(const data::RewardBreakdown& score, records::RolloutRecord& record) const;

  RolloutSetup setup_;
  rollout::Engine& engine_;
  rewards::ScorePool pool_;
  std::map<uint64_t, const data::Prompt*> prompts_;  // by id
};

// Adds what RolloutWorker::work has measured: seconds of this rank, all else of all ranks.
// Collective.
Status add_over_ranks(comm::Communicator& communicator, const Metrics& own, Metrics& metrics);

// The life of a rank that only samples, ranks [num_trainers, size) of `world`: takes work from rank
// 0 and weights from rank `rank % num_trainers` until the work ends. An error of its own is told to
// the trainers, which end the run. Only messages between two ranks pass, so that its death holds
// nobody up.
Status serve_rollouts(comm::Communicator& world, int num_trainers, Policy& policy,
                      RolloutWorker& worker);

}  // namespace gradus::trainer
