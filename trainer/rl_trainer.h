// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "records/metrics_log.h"
#include "records/rollout_dump.h"
#include "records/run_folder.h"
#include "records/terminal.h"
#include "trainer/algorithm.h"
#include "trainer/joint_retriever.h"
#include "trainer/reference_model.h"
#include "trainer/response_group.h"
#include "trainer/rollout_phase.h"
#include "trainer/run_state.h"
#include "trainer/step_clock.h"

namespace gradus::rollout {
class ToolBox;
}

namespace gradus::trainer {

// Where a run is written; folder and metrics are rank 0's alone, every rank has a saver.
struct RunRecords {
  records::RunFolder* folder = nullptr;
  records::MetricsLog* metrics = nullptr;
  CheckpointSaver* saver = nullptr;
};

// What computes in a run. Null members: on the CPU.
struct ComputeParts {
  std::unique_ptr<Learner> learner;
  std::unique_ptr<rollout::Engine> engine;    // may read weights of the learner, so it goes first
  std::unique_ptr<ReferenceModel> reference;  // with a KL term
  // Most memory that was seen taken on the device, bytes; empty: there is none.
  std::function<int64_t()> peak_device_bytes;
};

// Everything that a run of reinforcement learning consists of. References outlive the trainer.
struct RlSetup {
  TrainerConfig trainer;
  rollout::RolloutConfig rollout;
  EvalConfig eval;
  RunSettings run;
  ClusterConfig cluster;
  bool shuffle = true;
  uint64_t data_seed = 0;
  std::vector<data::Prompt> train_prompts;  // all rows, in the order of the data set
  std::vector<data::Prompt> eval_prompts;   // may be empty
  // Folder with the rollouts of earlier runs to train on, instead of sampling; empty: none. Their
  // steps end at `last_loaded_step`.
  std::string load_rollouts;
  int64_t last_loaded_step = 0;
  // Folder to write rollouts to, without training on them; empty: train.
  std::string dump_rollouts;
  // What responses may call; outlives the trainer. Null: nothing.
  rollout::ToolBox* tools = nullptr;
  // A retriever that is part of the policy, whose tool is among `tools`; outlives the trainer.
  // Null: none. Colocated mode alone.
  JointRetriever* retriever = nullptr;
  // Of the advantage gae (load_critic); empty: none.
  std::optional<Policy> critic;
  ComputeParts parts{};
  // Where the run begins; for a client of a federated run, which begins anew in each round.
  RunPosition start{};
  // Sets the factors of the groups' advantages (all 1), after these are set; empty: leaves them.
  std::function<void(std::span<const ResponseGroup>, std::span<double> weights_G)> weigh_groups;
  // Takes note of the metrics of each step.
  std::function<void(const Metrics&)> on_step;
};

// What the steps of a process took and did, summed; of several the first is left out,
// since it also pays for memory that is touched for the first time.
struct StepTotals {
  int64_t num_steps = 0;
  double rollout_seconds = 0, update_seconds = 0, exchange_seconds = 0;
  double num_responses = 0, response_tokens = 0, prompt_tokens = 0, longest_response = 0;
};

// The loop: sample responses to a batch of prompts, score them, turn rewards into advantages,
// update (docs/architecture.md). Batches come from a RolloutPhase, every trainer computes its share
// of the gradient. In colocated and split mode a step is a function of (weights, optimizer, data
// position, seeds) alone, so reruns and resumed runs repeat it bit for bit; sampling and training
// also run alone, by way of the rollouts on disk. Not thread-safe.
class RlTrainer {
 public:
  // `communicator` joins the trainers; `client`, if not null, the ranks that sample for them.
  RlTrainer(RlSetup setup, Policy& policy, const rewards::RewardSum& rewards,
            const Algorithm& algorithm, comm::Communicator& communicator, RunRecords records,
            records::RunDisplay& display, RolloutClient* client = nullptr);
  ~RlTrainer();

  // Continues from a checkpoint of the run, on every rank.
  Status resume(const std::string& checkpoint_folder);

  // Trains to the last step, or until records::stop_requested(): then the step is finished and a
  // checkpoint written. Errors of any rank are returned on all.
  Status run();

  // Makes all steps whatever signals come, without evaluation and checkpoints.
  Status run_through();

  const RunPosition& position() const { return position_; }
  // Of the steps of this process that sampled; rank 0's times.
  const StepTotals& totals() const { return totals_; }
  // Of the first and the last evaluation of this process; empty without evaluation.
  const std::vector<Evaluation>& evaluations() const { return evaluations_; }

 private:
  using Group = ResponseGroup;
  // One number per response token of the groups at hand, over all ranks.
  struct TokenNumbers {
    std::vector<float> logprobs, entropies;
  };
  // What this rank had to do in the step; seconds without waiting for other ranks.
  struct RankLoad {
    double rollout_seconds = 0, update_seconds = 0;
    double slot_seconds = 0, tail_idle_seconds = 0;
    double longest_tokens = 0, longest_seconds = 0;
  };

  Status step();
  Result<std::vector<Group>> sample_round(uint64_t first_position, Metrics& metrics);
  uint64_t oldest_version(std::span<const Group> groups) const;
  Result<std::vector<Group>> collect(Metrics& metrics);
  void add_rollout_metrics(const Group& group, Metrics& metrics) const;
  Status prepare(std::span<Group> groups, Metrics& metrics);
  Status set_greedy_rewards(std::span<Group> groups, Metrics& metrics);
  Status set_old_logprobs(std::span<Group> groups);
  Status set_penalties(std::span<Group> groups, Metrics& metrics);
  Result<TokenNumbers> forward_all(std::span<const data::PackGroup> packs, bool of_reference);
  Status check_mismatch(const records::RolloutRecord& record, std::span<const float> logprobs,
                        double& largest) const;
  double kl_coef() const;
  Result<std::vector<Group>> load_groups();
  Status check_versions(std::span<const Group> groups);
  Status update_all(std::span<const Group> groups, Metrics& metrics);
  Status dump_failure(std::span<const Group> groups, const RunPosition& position,
                      const Status& reason);
  Status update(std::span<const Group> groups, bool is_on_policy, Metrics& metrics);
  Status update_retriever(std::span<const Group> groups, uint64_t first_position, Metrics& metrics);
  Status evaluate_now(Metrics& metrics);
  void add_load(double rollout_seconds);
  void add_balance(Metrics& metrics);
  void add_times(Metrics& metrics, double num_tokens);
  Status write_step(Metrics& metrics, std::span<const Group> groups);
  Status save();

  RlSetup setup_;
  Policy& policy_;
  const rewards::RewardSum& rewards_;
  const Algorithm& algorithm_;
  comm::Communicator& communicator_;
  RunRecords records_;
  records::RunDisplay& display_;
  ComputeParts parts_;
  Learner& learner_;
  rollout::Engine& engine_;
  data::DataOrder order_;
  RolloutWorker worker_;
  RolloutWorker greedy_worker_;  // of one response to a prompt, for remax
  RolloutPhase phase_;
  std::optional<rewards::Curriculum> curriculum_;  // of reward.rubric
  std::unique_ptr<Critic> critic_;                 // null: none
  RunPosition position_;
  uint64_t weights_hash_ = 0;
  double step_kl_coef_ = 0;  // position_.kl_coef when the step began
  int64_t num_planned_updates_ = 0;
  StepClock clock_;
  StepTotals totals_;
  int64_t num_steps_here_ = 0;
  RankLoad load_;
  std::vector<Evaluation> evaluations_;
  std::map<std::string, double> last_metrics_;  // of the last step
};

}  // namespace gradus::trainer
