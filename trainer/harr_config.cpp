// SPDX-License-Identifier: Apache-2.0
#include "trainer/harr_config.h"

#include <cmath>

#include "common/config/rules.h"
#include "trainer/internal/query_training.h"

namespace gradus::trainer {

void HarrConfig::visit(FieldVisitor& v) {
  v.field("index", index, "Folder of `gradus index build` that is searched.", non_empty());
  v.field("statements", statements,
          "What the scripted reader knows of the passages: statements.jsonl of `gradus data make "
          "multihop`.",
          non_empty());
  v.field("encoder", encoder,
          "Directory of the encoder that the index was built with; unset: where it was then.");
  v.field("history", history,
          "Whether the state is the sub-query with the question and the answers so far, or the "
          "sub-query alone.");
  v.field("num_steps", num_steps, "Updates to make; 0 evaluates the encoder as it is.",
          at_least(0));
  v.field("questions_per_step", questions_per_step, "Questions in an update, over all ranks.",
          at_least(1));
  v.field("group_size", group_size, "Trajectories of a question, which are compared.", at_least(2));
  v.field("pool_size", pool_size, "Nearest documents that a list is drawn from.", at_least(1));
  v.field("list_length", list_length, "Documents that a search gives the reader.", at_least(1));
  v.field("temperature", temperature, "Divides the scores when a list is drawn.", greater_than(0));
  v.field("final_temperature", final_temperature,
          "Temperature of the last step, reached in equal ratios; unset: it does not change.",
          greater_than(0));
  v.field("reward", reward, "Of an answer: F1 as HotpotQA's script has it, or exact match.",
          one_of({"f1", "em"}));
  v.field(
      "advantage", advantage,
      "A trajectory's reward less the group's mean, over its deviation (grpo), or less the mean "
      "of the others (rloo).",
      one_of({"grpo", "rloo"}));
  v.field("clip_eps", clip_eps, "Half-width of the clip of a list's probability ratio.",
          in_open(0, 1));
  optimizer.visit(v);
}

double temperature_at(const HarrConfig& config, int64_t step) {
  if (!config.final_temperature || config.num_steps < 2) return config.temperature;
  const double progress = static_cast<double>(step) / static_cast<double>(config.num_steps - 1);
  return config.temperature * std::pow(*config.final_temperature / config.temperature, progress);
}

Status validate(const HarrConfig& config, int64_t world_size) {
  ConfigRules rules;
  add_query_optimizer_rules(rules, config.optimizer, config.num_steps, "harr", "harr.num_steps");
  rules.require(config.list_length <= config.pool_size,
                "harr.list_length ({}) must be at most harr.pool_size ({})", config.list_length,
                config.pool_size);
  add_query_ranks_rule(rules, "harr", world_size);
  return rules.status();
}

}  // namespace gradus::trainer
