// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <string>

#include "common/config/bind.h"
#include "common/config/field_visitor.h"
#include "common/status.h"
#include "data/data_config.h"
#include "federated/federated_config.h"
#include "model/lora.h"
#include "model/model_source_config.h"
#include "rewards/reward_config.h"
#include "rollout/rollout_config.h"
#include "trainer/cluster_config.h"
#include "trainer/harr_config.h"
#include "trainer/joint_retriever.h"
#include "trainer/preference_config.h"
#include "trainer/trainer_config.h"

namespace gradus::cli {

// Everything a run's YAML says; docs/config.md lists the keys.
struct RunConfig {
  trainer::RunSettings run;
  model::ModelSourceConfig model;
  model::LoraConfig lora;
  data::DataConfig data;
  rollout::RolloutConfig rollout;
  rewards::RewardConfig reward;
  trainer::TrainerConfig trainer;
  std::optional<trainer::HarrConfig> harr;    // set: `gradus train` trains a retriever
  std::optional<trainer::JointConfig> joint;  // set: the search tool's encoder is trained too
  trainer::SftConfig sft;
  trainer::DpoConfig dpo;
  trainer::RewardModelConfig reward_model;
  trainer::EvalConfig eval;
  federated::FederatedConfig federated;
  trainer::ClusterConfig cluster;
  trainer::NumericsConfig numerics;

  void visit(FieldVisitor& v);
};

// What a configuration is used for; the rules differ.
enum class RunKind { kTrain, kHarr, kSft, kDpo, kRewardModel, kEval, kFederate };

// The rules between fields, for a run on `world_size` ranks. InvalidArgument has one problem a
// line, each naming its keys.
Status validate(const RunConfig& config, RunKind kind, int64_t world_size = 1);

// Reads the file with the overrides of `--set`; the preset of trainer.algorithm.name holds wherever
// no key is written. The rules between fields are not checked.
Result<LoadedConfig<RunConfig>> read_run_config(const std::string& path,
                                                std::span<const std::string> overrides);

// The same, validated; kTrain stands for kHarr as well, where the section is there. The error has
// every problem, one a line, with its place.
Result<LoadedConfig<RunConfig>> load_run_config(const std::string& path,
                                                std::span<const std::string> overrides,
                                                RunKind kind, int64_t world_size = 1);

// The resolved configuration, each value with its origin (config.resolved.yaml of a run folder).
std::string resolved_yaml(const LoadedConfig<RunConfig>& config);

// docs/config.md.
std::string run_config_markdown();

}  // namespace gradus::cli
