// SPDX-License-Identifier: Apache-2.0
#include "rewards/reward_config.h"

#include <set>

#include "common/config/rules.h"

namespace gradus::rewards {

void RewardPartConfig::visit(FieldVisitor& v) {
  v.field("name", name, "Name of the reward, e.g. exact, number, format.", non_empty());
  v.field("label", label, "Name of the part in metrics, for a reward that is used twice.");
  v.field("tasks", tasks, "Values of data_source that it applies to; all if empty.");
  v.field("weight", weight, "Factor of this part in the total; 0 only measures it.");
  v.field("gate", gate,
          "Another part, by its label: this one counts only where that one has full marks.");
  v.field("retries", retries,
          "Further calls for a response on which this reward timed out or broke, before on_error.",
          in_closed(0, 100));
  v.field("on_error", on_error, "reward.on_error of this part alone.",
          one_of({"skip_sample", "skip_group", "score", "abort"}));
  v.field("error_score", error_score, "reward.error_score of this part alone.");
  v.field("options", options, "Options of this reward, by name (e.g. marker, pattern).");
}

void RewardConfig::visit(FieldVisitor& v) {
  v.field("parts", parts, "Terms of the weighted sum.");
  v.field("rubric", rubric,
          "File of a rubric, instead of parts: an answer, and criteria with a curriculum "
          "(docs/rewards.md).");
  v.field("on_error", on_error,
          "A response whose check failed leaves the update, alone or with its whole group, gets "
          "error_score for the part that failed, or stops the run.",
          one_of({"skip_sample", "skip_group", "score", "abort"}));
  v.field("error_score", error_score, "Score of a failed part with on_error: score.");
  v.field("threads", threads,
          "Threads of a rank that score responses while others are sampled; 0 scores afterwards. "
          "Results do not depend on it.",
          in_closed(0, 256));
}

Status validate(const RewardConfig& config) {
  ConfigRules rules;
  rules.require(
      config.rubric.empty() || config.parts.empty(),
      "both reward.rubric and reward.parts are set; make the parts criteria of the rubric, "
      "or drop one of the two");
  bool has_weight = false;
  for (const RewardPartConfig& part : config.parts) has_weight |= part.weight != 0;
  rules.require(
      config.parts.empty() || has_weight,
      "every reward.parts entry has weight 0, so nothing can be learned; give one a weight");
  std::set<std::string> labels;
  for (const RewardPartConfig& part : config.parts) {
    const std::string& label = part.label.empty() ? part.name : part.label;
    rules.require(labels.insert(label).second,
                  "two reward.parts are called '{}'; give one of them another label", label);
  }
  for (size_t i = 0; i < config.parts.size(); ++i) {
    const RewardPartConfig& part = config.parts[i];
    const std::string& own = part.label.empty() ? part.name : part.label;
    rules.require(part.gate.empty() || (part.gate != own && labels.contains(part.gate)),
                  "reward.parts[{}].gate: is '{}'; expected the label of another part", i,
                  part.gate);
  }
  return rules.status();
}

}  // namespace gradus::rewards
