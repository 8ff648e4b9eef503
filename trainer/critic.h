// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>
#include <string>

#include "trainer/cpu_learner.h"
#include "trainer/response_group.h"
#include "trainer/run_state.h"

namespace gradus::trainer {

// The config of the model that a critic starts from: that of trainer.critic.path, or the policy's,
// under a score head. Reads no weights. InvalidArgument unless it takes the policy's tokens and
// contexts.
Result<model::ModelConfig> critic_model_config(const CriticConfig& config,
                                               const model::ModelSourceConfig& source,
                                               const model::ModelConfig& policy);

// That model, all of it or an adapter to be trained as the policy is. A new head is drawn by
// `seed`.
Result<Policy> load_critic(const CriticConfig& config, const model::ModelSourceConfig& source,
                           const model::LoraConfig& lora, uint64_t seed,
                           const model::ModelConfig& policy);

// The critic of PPO (Schulman et al. 2017, arXiv:1707.06347): a model with a score head, whose
// number at the row that would predict a token is the value V of the state before it. The advantage
// gae is made of its values at the start of a step; it then learns their returns by the value loss
// (trainer/value_loss.h). The same one forward as the policy: in the first update of a step the
// values equal those before it bit for bit. Collective over the ranks. Not thread-safe; references
// outlive it.
class Critic {
 public:
  // `config` has a critic; `algorithm` is resolved.
  Critic(Policy model, const TrainerConfig& config, const AlgorithmConfig& algorithm,
         comm::Communicator& communicator);

  // Values of all responses that take part in a step, in the groups and their records, on every
  // rank. DataLoss if one is not finite.
  Status set_values(std::span<ResponseGroup> groups, int64_t step);
  // The same of a step that is gone on with from its middle: the records have those of its start.
  Status keep_values(std::span<ResponseGroup> groups, int64_t step) const;

  // One update on a mini-batch with values and returns; a gradient that is not finite is skipped
  // and counted (skip_update). Adds critic/... to the metrics; `progress(groups)` counts this
  // rank's groups.
  Status update(std::span<const ResponseGroup> groups, RunPosition& position, Metrics& metrics,
                const std::function<void(int64_t)>& progress);

  // Seconds of forward and backward of the last update on this rank.
  double update_seconds() const { return update_seconds_; }

  const Policy& model() const { return model_; }
  Policy& model() { return model_; }
  const Learner& learner() const { return learner_; }
  Learner& learner() { return learner_; }

 private:
  Status check_mismatch(const records::RolloutRecord& record, std::span<const float> values,
                        int64_t step, double& largest) const;

  Policy model_;
  CriticConfig config_;
  const AlgorithmConfig& algorithm_;
  bool allow_mismatch_;
  int64_t num_planned_updates_;
  comm::Communicator& communicator_;
  CpuLearner learner_;
  int64_t num_updates_at_values_ = -1;  // learner_.num_updates() at the last set_values()
  double update_seconds_ = 0;
};

// critic/values/..., critic/returns/... and critic/vf_explained_var of a step.
void add_value_metrics(std::span<const ResponseGroup> groups, Metrics& metrics);

}  // namespace gradus::trainer
