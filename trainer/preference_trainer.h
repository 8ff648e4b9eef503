// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "trainer/cpu_learner.h"
#include "trainer/preference_loss.h"
#include "trainer/rl_trainer.h"
#include "trainer/run_state.h"
#include "trainer/step_clock.h"

namespace gradus::trainer {

// A prompt with two responses, end tokens included; each at least one token.
struct PreferencePair {
  std::vector<int32_t> prompt, chosen, rejected;
  double margin = 0;  // of the Bradley-Terry loss
};

// What a run on preferences consists of.
struct PreferenceSetup {
  std::variant<DpoConfig, RewardModelConfig> objective;
  EvalConfig eval;
  RunSettings run;
  bool shuffle = true;
  uint64_t data_seed = 0;
  std::vector<PreferencePair> train_pairs;  // at least one
  std::vector<PreferencePair> eval_pairs;   // may be empty
};

// Direct preference optimisation of a policy, or training of a reward model (a policy whose
// transformer has a score head): minimises the mean pair loss of each batch over all ranks. The two
// responses of a pair share their prompt's rows. Not thread-safe.
class PreferenceTrainer {
 public:
  PreferenceTrainer(PreferenceSetup setup, Policy& policy, comm::Communicator& communicator,
                    RunRecords records, records::RunDisplay& display);

  // DPO: computes the reference's log-probs of all pairs that the run will see, which are kept: 16
  // bytes a pair. Must be called before resume(), while the policy is the initial model.
  Status prepare();
  Status resume(const std::string& checkpoint_folder);
  // As RlTrainer::run.
  Status run();
  const RunPosition& position() const { return position_; }

 private:
  // Sums over pairs, for metrics.
  struct Sums;

  const PreferenceConfig& loop() const;
  bool is_dpo() const { return std::holds_alternative<DpoConfig>(setup_.objective); }
  data::PackGroup group_of(const PreferencePair& pair) const;
  PairValues values_of(const PreferencePair& pair, std::span<const float> outputs) const;
  PairLoss loss_of(const PreferencePair& pair, const PairValues& values,
                   const PairValues& reference) const;
  void spread_slopes(const PreferencePair& pair, const PairValues& slopes,
                     std::span<float> doutputs) const;
  Result<std::vector<PairValues>> values_under_policy(std::span<const PreferencePair> pairs,
                                                      const std::vector<bool>& wanted,
                                                      const std::string& phase);
  Status compute_reference();
  std::span<const PreferencePair> eval_pairs() const;
  Status evaluate(Metrics& metrics);
  Status write_row(Metrics& metrics);
  Status step();
  Status save();

  PreferenceSetup setup_;
  Policy& policy_;
  comm::Communicator& communicator_;
  RunRecords records_;
  records::RunDisplay& display_;
  CpuLearner learner_;
  data::DataOrder order_;
  std::vector<PairValues> train_reference_, eval_reference_;  // by row
  RunPosition position_;
  StepClock clock_;
  std::map<std::string, double> last_metrics_;  // of the last step
};

}  // namespace gradus::trainer
