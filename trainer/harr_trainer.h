// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/lora.h"
#include "records/checkpoint_store.h"
#include "retriever/retrieval_rollout.h"
#include "trainer/advantage.h"
#include "trainer/harr_config.h"
#include "trainer/rl_trainer.h"

namespace gradus::trainer {

// What a run of HARR consists of.
struct HarrSetup {
  HarrConfig harr;
  model::LoraConfig lora;  // rank 0: all weights are trained
  EvalConfig eval;
  RunSettings run;
  bool shuffle = true;
  uint64_t data_seed = 0;
  std::vector<retriever::SearchQuestion> train_questions;  // at least one
  std::vector<retriever::SearchQuestion> eval_questions;   // may be empty
};

// History-aware reinforced retrieval (HARR, arXiv:2602.03645): the query encoder is the policy, a
// trajectory is the chain of searches that answers a question, its reward that of the answer. A
// step samples questions_per_step x group_size trajectories with the encoder of now, compares those
// of a question, and makes one update (retriever/query_trainer.h). Index and documents' vectors
// stay as they are. Weights and metrics depend neither on the number of ranks nor on a stop in
// between.
//
// Evaluation is greedy; what became of each question goes to evaluations/step_N.jsonl of the run
// folder. A checkpoint is a directory of the encoder that `gradus index embed` and `gradus index
// search --model` take, with the optimizer beside it. Not thread-safe.
class HarrTrainer {
 public:
  // The references outlive it. `store` on rank 0 alone; records.saver is not used.
  HarrTrainer(HarrSetup setup, retriever::Embedder& embedder, const retriever::IndexFolder& index,
              const retriever::ScriptedReader& reader, comm::Communicator& communicator,
              RunRecords records, records::CheckpointStore* store, records::RunDisplay& display);

  Status resume(const std::string& checkpoint_folder);
  // As RlTrainer::run.
  Status run();
  const RunPosition& position() const { return position_; }

 private:
  struct Outcome;    // of a trajectory
  struct Evaluated;  // of a question

  Outcome outcome_of(const retriever::SearchQuestion& question,
                     const retriever::RetrievalTrajectory& trajectory) const;
  // This rank's questions of a step, with the block of each.
  Result<std::vector<retriever::RetrievalStep>> sample(Metrics& metrics);
  Status step();
  Status evaluate(Metrics& metrics);
  Status write_evaluation(const std::vector<Evaluated>& all) const;
  Status write_row(Metrics& metrics);
  int64_t weights_bytes();
  Status save();

  HarrSetup setup_;
  retriever::Embedder& embedder_;
  const retriever::IndexFolder& index_;
  const retriever::ScriptedReader& reader_;
  comm::Communicator& communicator_;
  RunRecords records_;
  records::CheckpointStore* store_;
  records::RunDisplay& display_;
  retriever::QueryTrainer trainer_;
  std::unique_ptr<AdvantageEstimator> advantages_;
  data::DataOrder order_;
  RunPosition position_;
  StepClock clock_;
  std::map<std::string, double> last_metrics_;  // of the last step
};

}  // namespace gradus::trainer
