// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/config/field_visitor.h"
#include "common/status.h"
#include "data/data_config.h"
#include "model/model_source_config.h"
#include "rewards/reward_config.h"
#include "rollout/rollout_config.h"
#include "trainer/trainer_config.h"

namespace gradus::cli {

// Everything a run's YAML says; docs/config.md lists the keys.
struct RunConfig {
  trainer::RunSettings run;
  model::ModelSourceConfig model;
  data::DataConfig data;
  rollout::RolloutConfig rollout;
  rewards::RewardConfig reward;
  trainer::TrainerConfig trainer;
  trainer::SftConfig sft;
  trainer::EvalConfig eval;

  void visit(FieldVisitor& v);
};

// The rules between fields, for a run on `world_size` ranks. InvalidArgument has one problem a
// line, each naming its keys.
Status validate(const RunConfig& config, int64_t world_size = 1);

}  // namespace gradus::cli
