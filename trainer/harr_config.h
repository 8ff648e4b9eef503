// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "trainer/trainer_config.h"

// The `harr` section of a run's YAML: reinforcement learning of the query side of a retriever
// (docs/retrieval.md). Where it is given, `gradus train` trains that instead of a language model.
namespace gradus::trainer {

enum class HarrReward { kF1, kEm };
enum class HarrAdvantage { kGrpo, kRloo };

struct HarrConfig {
  std::string index;       // folder of `gradus index build`
  std::string statements;  // what the scripted reader knows: statements.jsonl
  std::string encoder;     // empty: where the index says
  bool history = true;
  int64_t num_steps = 100;
  int64_t questions_per_step = 16;  // over all ranks
  int64_t group_size = 8;           // G
  int64_t pool_size = 30;           // K
  int64_t list_length = 3;          // k
  double temperature = 0.05;        // a
  std::optional<double> final_temperature;
  HarrReward reward = HarrReward::kF1;
  HarrAdvantage advantage = HarrAdvantage::kGrpo;
  double clip_eps = 0.2;
  OptimizerConfig optimizer{.learning_rate = 1e-5};

  void visit(FieldVisitor& v);
};

// The temperature of step `step` of the run, 0 the first: from temperature to final_temperature in
// equal ratios.
double temperature_at(const HarrConfig& config, int64_t step);

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys in full.
Status validate(const HarrConfig& config, int64_t world_size);

}  // namespace gradus::trainer
