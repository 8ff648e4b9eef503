// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"

// The section `trainer.algorithm`. An algorithm is a preset, a name for values of the other keys;
// keys that are written override those of the preset.
namespace gradus::trainer {

enum class KlKind { kK1, kK2, kK3 };

// The pull towards the initial model.
struct KlConfig {
  KlKind kind = KlKind::kK3;
  double coef = 0.0;  // 0: off

  void visit(FieldVisitor& v);
};

// The defaults are those of the preset `grpo`.
struct AlgorithmConfig {
  std::string name = "grpo";       // of the preset
  std::string loss = "ppo";        // in the registry of policy losses
  std::string advantage = "grpo";  // in the registry of advantages
  double clip_low = 0.2;
  double clip_high = 0.28;
  double clip_dual = 3.0;  // 0: off
  KlConfig kl;

  void visit(FieldVisitor& v);
};

Status validate(const AlgorithmConfig& config);

std::vector<std::string> preset_names();

// The values that a preset stands for; a bug if there is no such preset.
AlgorithmConfig preset(const std::string& name);

}  // namespace gradus::trainer
