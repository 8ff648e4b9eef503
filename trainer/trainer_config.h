// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/config/field_visitor.h"
#include "common/log.h"
#include "common/status.h"
#include "trainer/algorithm_config.h"
#include "trainer/federated_rl_config.h"

// How weights are updated: the `trainer` (reinforcement learning), `sft`, `eval` and `run` sections
// of a run's YAML.
namespace gradus::trainer {

enum class LrSchedule { kConstant, kLinear, kCosine };
enum class OptimizerKind { kAdamW, kMuon };
enum class MuonScale { kSpectral, kMatchAdamW };

// The optimizer and its learning rate; keys stand directly in the section that has it.
struct OptimizerConfig {
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  double learning_rate = 1e-6;
  LrSchedule lr_schedule = LrSchedule::kConstant;
  int64_t warmup_steps = 0;
  double min_lr_ratio = 0.0;
  double weight_decay = 0.01;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_eps = 1e-8;
  double max_grad_norm = 1.0;  // 0: no clipping
  double muon_learning_rate = 0.02;
  double muon_momentum = 0.95;
  MuonScale muon_scale = MuonScale::kSpectral;
  double ema_decay = 0.0;  // 0: no average

  void visit(FieldVisitor& v);
};

// How one gradient is computed; changes memory and time, not the mathematics. Keys stand directly
// in the section that has it.
struct BackwardConfig {
  int64_t micro_batch_tokens = 4096;
  bool gradient_checkpointing = false;
  int64_t reduction_blocks = 8;
  int64_t zero_stage = 0;
  bool layout_invariant = true;  // NumericsConfig's, set by load_run_config

  void visit(FieldVisitor& v);
};

// The `numerics` section.
struct NumericsConfig {
  bool layout_invariant = true;

  void visit(FieldVisitor& v);
};

// The critic of the advantage gae (trainer/critic.h).
struct CriticConfig {
  std::string path;  // empty: starts from the policy's initial model
  OptimizerConfig optimizer{.learning_rate = 1e-5};
  double value_clip = 0.5;  // 0: off
  int64_t frozen_policy_steps = 0;

  void visit(FieldVisitor& v);
};

struct TrainerConfig {
  AlgorithmConfig algorithm;
  int64_t num_steps = 100;
  int64_t prompts_per_step = 32;  // over all ranks
  int64_t mini_batches = 1;       // updates per rollout batch
  OptimizerConfig optimizer;
  BackwardConfig backward;
  std::optional<CriticConfig> critic;  // resolved: where the advantage is gae
  double entropy_coef = 0.0;
  bool dynamic_sampling = false;
  int64_t max_sampling_rounds = 4;
  int64_t overlong_buffer_tokens = 0;  // 0: off
  double overlong_penalty = 1.0;
  bool allow_mismatch = false;
  std::optional<FederatedRlConfig> federated;

  void visit(FieldVisitor& v);
};

struct SftConfig {
  int64_t num_steps = 0;  // must be given
  int64_t batch_rows = 64;
  OptimizerConfig optimizer{.learning_rate = 1e-4};
  BackwardConfig backward;

  void visit(FieldVisitor& v);
};

struct EvalConfig {
  int64_t every_steps = 0;  // 0: never while training
  int64_t num_samples = 1;
  double temperature = 1.0;         // 0: greedy
  std::optional<int64_t> max_rows;  // unset: all rows of data.eval
  bool before_training = false;

  bool is_asked_for() const { return every_steps > 0 || before_training; }
  void visit(FieldVisitor& v);
};

enum class RunDevice { kCpu, kCuda };

struct RunSettings {
  std::string name = "run";
  std::string dir = "runs";  // the run folder is dir/name
  int64_t seed = 0;
  RunDevice device = RunDevice::kCpu;
  int64_t checkpoint_every = 50;  // steps; 0: only at the end
  int64_t keep_checkpoints = 2;
  std::string save_best_metric;  // empty: none is kept as best
  bool dump_rollouts = true;
  LogLevel log_level = LogLevel::kInfo;

  void visit(FieldVisitor& v);
};

// Sets what a preset stands for, beyond trainer.algorithm too: dapo replaces groups without signal
// and makes the last fifth of a response's length cost reward, as in its paper.
void apply_preset(const std::string& name, int64_t max_new_tokens, TrainerConfig& config);

// Fills in what is unset and depends on other keys, the critic of gae among it.
void resolve(TrainerConfig& config, int64_t max_new_tokens);

// Optimizer updates of the policy in a whole run.
int64_t num_policy_updates(const TrainerConfig& config);

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys in full.
// Rules of the optimizer name `section` ("trainer", "trainer.critic" or "sft"); `counted` says what
// makes the number of updates.
Status validate(const OptimizerConfig& config, int64_t num_updates, const std::string& section,
                const std::string& counted);
Status validate(const BackwardConfig& config, int64_t world_size, const std::string& section);
Status validate(const TrainerConfig& config, int64_t world_size);
Status validate(const SftConfig& config, int64_t world_size);
Status validate(const RunSettings& config);

}  // namespace gradus::trainer
