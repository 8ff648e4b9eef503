// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithm_config.h"

#include <functional>
#include <map>

#include "common/config/rules.h"
#include "trainer/algorithm.h"

namespace gradus::trainer {
namespace {

using Preset = std::function<void(AlgorithmConfig&)>;

const std::map<std::string, Preset>& presets() {
  static const std::map<std::string, Preset> all = {
      {"grpo", [](AlgorithmConfig&) {}},
      {"reinforce",
       [](AlgorithmConfig& config) {
         config.loss = "reinforce";
         config.advantage = "dr_grpo";
       }},
  };
  return all;
}

std::vector<std::string> loss_names() {
  LossRegistry registry("loss");
  register_builtin_losses(registry);
  return registry.names();
}

std::vector<std::string> advantage_names() {
  AdvantageRegistry registry("advantage");
  register_builtin_advantages(registry);
  return registry.names();
}

}  // namespace

void KlConfig::visit(FieldVisitor& v) {
  v.field("kind", kind, "Estimator of the KL term (Schulman 2020).", one_of({"k1", "k2", "k3"}));
  v.field("coef", coef, "Weight of the KL term against the initial model; 0 is off.", at_least(0));
}

void AlgorithmConfig::visit(FieldVisitor& v) {
  v.field("name", name, "Preset: the values of the other keys unless they are written.",
          one_of(preset_names()));
  v.field("loss", loss, "Loss of a token.", one_of(loss_names()));
  v.field("advantage", advantage, "How rewards become advantages.", one_of(advantage_names()));
  v.field("clip_low", clip_low, "The ratio is clipped below at 1 - clip_low (PPO, DAPO).",
          greater_than(0));
  v.field("clip_high", clip_high, "The ratio is clipped above at 1 + clip_high (DAPO).",
          greater_than(0));
  v.field("clip_dual", clip_dual,
          "With a negative advantage the loss is at most this many times its size (dual-clip PPO); "
          "0 is off.",
          at_least(0));
  v.field("kl", kl, "The pull towards the initial model.");
}

Status validate(const AlgorithmConfig& config) {
  ConfigRules rules;
  rules.require(config.clip_dual == 0 || config.clip_dual > 1 + config.clip_high,
                "trainer.algorithm.clip_dual ({}) must be greater than 1 + "
                "trainer.algorithm.clip_high ({}); use 0 to disable",
                config.clip_dual, 1 + config.clip_high);
  return rules.status();
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& [name, apply] : presets()) names.push_back(name);
  return names;
}

AlgorithmConfig preset(const std::string& name) {
  const auto found = presets().find(name);
  GRADUS_CHECK(found != presets().end(), "unknown preset '" + name + "'");
  AlgorithmConfig config;
  config.name = name;
  found->second(config);
  return config;
}

}  // namespace gradus::trainer
