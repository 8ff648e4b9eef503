// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "trainer/rl_trainer.h"
#include "trainer/run_state.h"
#include "trainer/step_clock.h"

namespace gradus::trainer {

// A prompt and the response to learn, its end token included.
struct SftExample {
  std::vector<int32_t> prompt;    // at least one token
  std::vector<int32_t> response;  // at least one token
};

// What a run of supervised fine-tuning consists of.
struct SftSetup {
  SftConfig sft;
  RunSettings run;
  bool shuffle = true;
  uint64_t data_seed = 0;
  std::vector<SftExample> examples;  // at least one
  EvalConfig eval = {};
  std::vector<SftExample> held_out = {};  // for val/loss; may be empty
  ComputeParts parts = {};                // of which it needs the learner
};

// Supervised fine-tuning: minimises the mean negative log-prob of the response tokens of each
// batch, over all ranks. The same mean over the held-out examples, by the running average of the
// weights if there is one, is taken every eval.every_steps steps and after the last one. Not
// thread-safe.
class SftTrainer {
 public:
  SftTrainer(SftSetup setup, Policy& policy, comm::Communicator& communicator, RunRecords records,
             records::RunDisplay& display);

  Status resume(const std::string& checkpoint_folder);
  // As RlTrainer::run.
  Status run();
  const RunPosition& position() const { return position_; }

 private:
  Status step();
  // Mean negative log-prob of the held-out response tokens, over all ranks.
  Result<double> held_out_loss();
  Status save();

  SftSetup setup_;
  Policy& policy_;
  comm::Communicator& communicator_;
  RunRecords records_;
  records::RunDisplay& display_;
  ComputeParts parts_;
  Learner& learner_;
  data::DataOrder order_;
  RunPosition position_;
  StepClock clock_;
  std::map<std::string, double> last_metrics_;  // of the last step
};

}  // namespace gradus::trainer
