// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "common/metrics.h"
#include "common/status.h"
#include "data/chat_template.h"
#include "data/prompt_builder.h"
#include "data/statistics.h"
#include "data/tokenizer.h"
#include "model/checkpoint.h"
#include "model/lora.h"
#include "model/model_source_config.h"
#include "model/transformer.h"
#include "records/checkpoint_store.h"
#include "records/terminal.h"
#include "rewards/reward_sum.h"
#include "rollout/engine.h"
#include "rollout/rollout_config.h"
#include "trainer/learner.h"
#include "trainer/trainer_config.h"

// What supervised and reinforcement training share: the model with its tokenizer, checkpoints,
// evaluation.
namespace gradus::trainer {

// A model that can be trained and asked: weights, tokenizer, and the template if it has one.
struct Policy {
  std::unique_ptr<model::Transformer> transformer;
  std::unique_ptr<data::Tokenizer> tokenizer;
  std::optional<data::ChatTemplate> chat_template;
  std::string path;            // of the directory it was loaded from; empty: made here
  std::string tokenizer_dir;   // whose files go into checkpoints
  std::string tokenizer_json;  // instead, for a tokenizer made here
};

// Loads a Hugging Face directory (`path`), or makes a new model with weights drawn by `seed`. An
// adapter of the source is merged and forgotten. With a score head wanted, a language model gets a
// new one (Transformer::with_score_head); the other way round is an error.
Result<Policy> load_policy(const model::ModelSourceConfig& config, uint64_t seed,
                           model::Head head = model::Head::kLanguage);

// The same to be trained: with the source's adapter, or with a new one as `lora` says, if it says
// so.
Result<Policy> load_policy_to_train(const model::ModelSourceConfig& config,
                                    const model::LoraConfig& lora, uint64_t seed,
                                    model::Head head = model::Head::kLanguage);

// What load_policy_to_train would train: rank 0 is all weights. Reads no weights; the adapter is
// checked against `model`.
Result<model::LoraConfig> trained_adapter(const model::ModelSourceConfig& config,
                                          const model::LoraConfig& lora,
                                          const model::ModelConfig& model);

// The config that a policy of this source would have, without reading weights: for plans.
Result<model::ModelConfig> policy_config(const model::ModelSourceConfig& config,
                                         model::Head head = model::Head::kLanguage);

// Writes weights, config and tokenizer files as a Hugging Face directory, or a writer's share of it
// (model::WriteCheckpointOptions). `tokenizer_json` is that of a tokenizer made here, or empty.
Status write_policy_files(const model::ModelConfig& config, const std::string& tokenizer_json,
                          const std::string& dir, const model::WriteCheckpointOptions& options,
                          const model::WeightSource& read_weight);

// Where a run stands; a checkpoint holds it with the optimizer.
struct RunPosition {
  int64_t step = 0;             // steps done
  uint64_t data_position = 0;   // rows visited, through all epochs
  uint64_t policy_version = 0;  // updates made
  // Responses begun for later steps (RolloutPhase::take_down); in a checkpoint alone.
  std::string ahead;
  std::string rubric;  // state of rewards::Curriculum; empty: none
  double kl_coef = 0;  // of the adaptive controller, for the next step
  // Updates in a row, up to now, whose gradient was not finite.
  int64_t nonfinite_in_a_row = 0;
  int64_t critic_nonfinite_in_a_row = 0;  // the same of a critic
  // Mini-batches of the present step that were done, with a critic first its own; not 0 in the dump
  // of a failed step alone.
  int64_t mini_batches_done = 0;
  // Hashes of the weights of the last versions that sampled, which their rollouts must name.
  std::map<uint64_t, uint64_t> version_hashes;
};

class Critic;

// Folder of a critic inside a checkpoint.
inline constexpr char kCriticFolder[] = "critic";

// Reads a checkpoint (checkpoint_saver.h), written by any number of ranks, into policy, learner and
// critic (null: the run has none).
Status load_checkpoint(const std::string& folder, Policy& policy, Learner& learner,
                       RunPosition& position, Critic* critic = nullptr);

// Counts an update that Learner refused since its gradient was not finite: warns and adds to the
// metrics. From the third in a row on it returns `reason`, which ends the run.
Status skip_update(const Status& reason, int64_t& nonfinite_in_a_row, Metrics& metrics);

// What follows an update of the whole batch of a step (supervised, on preferences): counts it in
// the position and the metrics. One that was refused since its gradient was not finite is skipped,
// see skip_update; other errors come back.
Status finish_update(const Learner& learner, const Result<UpdateStats>& stats,
                     RunPosition& position, Metrics& metrics);

// The value of run.save_best_metric in the last row of metrics, if it has one.
std::optional<double> best_metric(const RunSettings& run,
                                  const std::map<std::string, double>& last_row);

class CheckpointSaver;
class StepClock;

// Makes steps until `position.step` (which `step` advances) is `num_steps`, or until a stop is
// asked of any rank: then the step is finished. Saves every `checkpoint_every` steps (0: never), at
// the last step and before it stops early, which it says on the display. `saver` writes beside the
// steps: its errors end the run after the step in which they came up; null: nothing to ask. What
// ranks wait for each other between steps is timing_s/exchange of `clock`.
Status run_steps(int64_t num_steps, int64_t checkpoint_every, const RunPosition& position,
                 comm::Communicator& communicator, records::RunDisplay& display,
                 const std::function<Status()>& step, const std::function<Status()>& save,
                 CheckpointSaver* saver, StepClock& clock);

rollout::EngineOptions engine_options(const rollout::RolloutConfig& config);
data::SamplingParams sampling_params(const rollout::RolloutConfig& config,
                                     const model::ModelConfig& model);

struct EvaluationSettings {
  int64_t num_samples = 1;
  data::SamplingParams sampling;
  uint64_t seed = 0;
};

// How the `eval` section asks for responses; the seed differs from that of training.
EvaluationSettings evaluation_settings(const EvalConfig& eval,
                                       const rollout::RolloutConfig& rollout,
                                       const model::ModelConfig& model, int64_t run_seed);

// What became of each prompt: right is a first reward part of 1. Responses are scored while others
// are sampled. Prompts are shared out over the ranks; every rank gets all outcomes, in order, with
// the mean response length and truncated fraction.
struct Evaluation {
  std::vector<data::ProblemOutcome> outcomes;
  double mean_response_tokens = 0;
  double truncated_fraction = 0;
  Metrics scoring;  // perf/eval_reward_..., perf/judge_..., of all ranks
};
Result<Evaluation> evaluate(rollout::Engine& engine, const rewards::RewardSum& rewards,
                            std::span<const data::Prompt> prompts,
                            const EvaluationSettings& settings, comm::Communicator& communicator,
                            const std::function<void(int64_t)>& progress = {});

// Adds val-core/... and val-aux/... of an evaluation.
void add_evaluation_metrics(const Evaluation& evaluation, int64_t num_samples, Metrics& metrics);

// Resident and peak resident memory of this process in bytes.
struct MemoryUse {
  int64_t resident = 0, peak = 0;
};
MemoryUse memory_use();

}  // namespace gradus::trainer
