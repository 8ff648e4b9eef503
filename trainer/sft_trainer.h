// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "trainer/rl_trainer.h"
#include "trainer/run_state.h"

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
};

// Supervised fine-tuning: minimises the mean negative log-prob of the response tokens of each
// batch, over all ranks. Not thread-safe.
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
  Status save();

  SftSetup setup_;
  Policy& policy_;
  comm::Communicator& communicator_;
  RunRecords records_;
  records::RunDisplay& display_;
  Learner learner_;
  data::DataOrder order_;
  RunPosition position_;
};

}  // namespace gradus::trainer
