// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "trainer/trainer_config.h"

// The `dpo` and `reward_model` sections of a run's YAML: training on pairs of responses of which
// one is preferred.
namespace gradus::trainer {

// What both sections say of the loop.
struct PreferenceConfig {
  int64_t num_steps = 0;  // must be given
  int64_t batch_pairs = 32;
  OptimizerConfig optimizer;
  BackwardConfig backward;

  void visit(FieldVisitor& v);
};

enum class DpoLoss { kSigmoid, kHinge, kIpo };

struct DpoConfig {
  PreferenceConfig loop{.optimizer = {.learning_rate = 1e-6}};
  DpoLoss loss_type = DpoLoss::kSigmoid;
  double beta = 0.1;
  double label_smoothing = 0.0;
  double sft_coef = 0.0;
  std::string reference_path;  // empty: the initial model

  void visit(FieldVisitor& v);
};

struct RewardModelConfig {
  PreferenceConfig loop{.optimizer = {.learning_rate = 1e-4}};
  double center_coef = 0.0;

  void visit(FieldVisitor& v);
};

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys in full.
Status validate(const DpoConfig& config, int64_t world_size);
Status validate(const RewardModelConfig& config, int64_t world_size);

}  // namespace gradus::trainer
