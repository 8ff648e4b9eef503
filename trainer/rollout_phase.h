// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trainer/cluster_config.h"
#include "trainer/learner.h"
#include "trainer/rollout_client.h"
#include "trainer/rollout_worker.h"

namespace gradus::trainer {

struct RolloutPhaseSetup {
  RolloutSetup work;
  ClusterConfig cluster;
  int64_t prompts_per_step = 0;
  int64_t num_steps = 0;
  uint64_t run_seed = 0;
};

// Where a trainer gets its batches from: from itself and the other trainers (colocated), from
// rollout ranks that sample when asked (split), or from rollout ranks that sample the next batches
// while this one is trained on (async). Every trainer has one and makes the same calls.
//
// Async is a fixed schedule, so that a run can be repeated bit for bit. With a staleness of k, work
// q is sampled by the weights that have seen the updates of q - 1 steps (work 0 by those of step
// 0), while step q - 1 trains. It ends the responses of batch q, and goes on with those of batches
// q + 1 to q + k - 1 for `partial_tokens` tokens each. Step q trains on batch q: its first tokens
// are from k steps before, its last from one step before (Kimi k1.5, arXiv 2501.12599, section
// 2.6.2, interrupts in the same way; AReaL, arXiv 2505.24298, bounds staleness alike, but by
// arrival).
//
// Not thread-safe. References outlive it.
class RolloutPhase {
 public:
  // `client` is null in colocated mode.
  RolloutPhase(RolloutPhaseSetup setup, const model::ModelConfig& model,
               std::span<const data::Prompt> prompts, data::DataOrder& order, RolloutWorker& worker,
               comm::Communicator& trainers, RolloutClient* client);

  // The records of the batch of step `step` (from 0), whose prompts begin at `first_position` of
  // the data order: by prompt and sample, scored, without advantages. `share` is what this rank
  // samples in colocated mode. The same on all trainers; errors of any rank are returned on all.
  Result<std::vector<records::RolloutRecord>> batch(int64_t step, uint64_t first_position,
                                                    BlockRange share,
                                                    std::span<const float> weights,
                                                    comm::WeightStamp stamp, Metrics& metrics,
                                                    const std::function<void(int64_t)>& progress);

  // Waits for what is being sampled for later steps and gives all of it, to be written into a
  // checkpoint; empty in other modes than async.
  Result<std::string> take_down();
  // Takes it up again before the first batch of a resumed run. DataLoss if it is not such text.
  Status take_up(std::string_view state);

  // Lets messages move while this rank computes.
  void progress();

 private:
  std::vector<data::RolloutRequest> requests_of(uint64_t first_position, int64_t begin,
                                                int64_t end);
  Result<std::vector<records::RolloutRecord>> own_batch(
      int64_t step, uint64_t first_position, BlockRange share, comm::WeightStamp stamp,
      Metrics& metrics, const std::function<void(int64_t)>& progress);
  Result<std::vector<records::RolloutRecord>> async_batch(
      int64_t step, uint64_t first_position, std::span<const float> weights,
      comm::WeightStamp stamp, Metrics& metrics, const std::function<void(int64_t)>& progress);
  void ask_ahead(int64_t step, uint64_t first_position);
  Status collect_ahead(const std::function<void(int64_t)>& progress);

  RolloutPhaseSetup setup_;
  data::SamplingParams sampling_;
  std::span<const data::Prompt> prompts_;
  data::DataOrder& order_;
  RolloutWorker& worker_;
  comm::Communicator& trainers_;
  RolloutClient* client_;
  std::vector<data::Trajectory> begun_;  // async: of the batches after the last one given
  std::optional<RolloutAnswer> ahead_;   // async: collected and not yet given
};

}  // namespace gradus::trainer
