// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/run_config.h"
#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "trainer/checkpoint_saver.h"
#include "trainer/preference_trainer.h"
#include "trainer/rl_trainer.h"
#include "trainer/sft_trainer.h"

// What `gradus train`, `gradus sft` and `gradus eval` do before their work: ranks, threads, data.
namespace gradus::cli {

// Starts MPI when launched by it and divides the host's processors among the ranks. Rank 0's
// display and log are the ones that people see.
Result<std::unique_ptr<comm::Communicator>> start_ranks();

// Has the ranks watch each other until it is destroyed; null for one rank. A run that is stuck
// prints who waits for whom and ends with exit code 70; ranks from `num_needed` on may die.
// Collective.
Result<std::unique_ptr<comm::Watchdog>> watch_ranks(comm::Communicator& ranks,
                                                    const trainer::ClusterConfig& config,
                                                    int64_t num_needed);

// Ends the process well if ranks have died on the way: MPI would wait for them.
void leave_the_dead(const comm::Communicator& ranks);

// Prompts of a source with ids 0, 1, ... in row order; over-long ones as data.overlong_prompts
// says, reward ground truths checked. `max_rows` 0: all. The number of dropped prompts goes to
// `num_dropped`.
Result<std::vector<data::Prompt>> load_prompts(const data::DataConfig& config,
                                               const data::SourceConfig& source,
                                               const trainer::Policy& policy,
                                               const rewards::RewardSum& rewards, int64_t max_rows,
                                               int64_t* num_dropped);

// Examples of supervised training: prompts with the rows' reference responses and the end token.
// Of the policy it needs tokenizer and template alone; `model` is its config.
Result<std::vector<trainer::SftExample>> load_examples(const data::DataConfig& config,
                                                       const data::SourceConfig& source,
                                                       const trainer::Policy& policy,
                                                       const model::ModelConfig& model,
                                                       int64_t max_rows);

// Pairs of a source of preference rows, prompts as for training, responses with the end token.
Result<std::vector<trainer::PreferencePair>> load_pairs(const data::DataConfig& config,
                                                        const data::SourceConfig& source,
                                                        const trainer::Policy& policy,
                                                        const model::ModelConfig& model,
                                                        int64_t max_rows, int64_t* num_dropped);

Result<rewards::RewardSum> make_rewards(const RunConfig& config);

// The run folder of rank 0 with its logs and checkpoints, and the folder of the checkpoint to
// resume from on every rank (empty: none).
struct OpenedRun {
  std::unique_ptr<records::RunFolder> folder;
  std::unique_ptr<records::MetricsLog> metrics;
  std::unique_ptr<records::CheckpointStore> checkpoints;
  std::unique_ptr<trainer::CheckpointSaver> saver;  // on every rank
  std::string resume_from;
  int64_t resume_step = 0;
  trainer::RunRecords records() const { return {folder.get(), metrics.get(), saver.get()}; }
};
Result<OpenedRun> open_run(const LoadedConfig<RunConfig>& loaded, bool resume,
                           comm::Communicator& communicator);

// Bytes that a run takes at its peak, by part, from the configuration alone.
struct MemoryPart {
  std::string name;
  int64_t bytes = 0;
};
// What a run computes at most.
struct PlannedWork {
  int64_t num_ranks = 1;          // that train
  int64_t longest_prompt = 0;     // tokens
  int64_t groups_per_update = 0;  // over all ranks
  int64_t rows_per_group = 0;     // packed tokens of a prompt with its responses
  model::LoraConfig adapter;      // rank 0: all weights are trained
  bool has_reference = false;
  bool has_evaluation = false;
  bool sends_weights = false;                // to ranks that only sample
  int64_t reward_bytes = 0;                  // of models that score
  std::optional<model::ModelConfig> critic;  // its adapter is as the policy's
  trainer::OptimizerConfig critic_optimizer;
};
// `rollout` null: no sampling.
std::vector<MemoryPart> plan_memory(const model::ModelConfig& model, const PlannedWork& work,
                                    const trainer::OptimizerConfig& optimizer,
                                    const trainer::BackwardConfig& backward,
                                    const rollout::RolloutConfig* rollout);

// Of a rank that only samples.
std::vector<MemoryPart> plan_sampling_memory(const model::ModelConfig& model,
                                             const PlannedWork& work,
                                             const rollout::RolloutConfig& rollout);

std::string run_folder_of(const RunConfig& config);

// What rank 0 says at the end of a run, and every rank of a stuck one; `gradus launch` reads both.
inline constexpr char kEndMessage[] = "the run is in ";
inline constexpr char kStuckMessage[] = "the run is stuck: ";

}  // namespace gradus::cli
