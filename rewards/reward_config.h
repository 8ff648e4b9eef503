// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"

// What a response earns: the `reward` section of a run's YAML.
namespace gradus::rewards {

// What happens to a sample whose check failed; never a silent 0.
enum class OnRewardError { kSkipSample, kSkipGroup, kScore, kAbort };

// One term of the weighted sum.
struct RewardPartConfig {
  std::string name;                       // in the reward registry
  std::string label;                      // in metrics; empty: the name
  std::vector<std::string> tasks;         // data sources it applies to; empty: all
  double weight = 1.0;                    // 0 only measures
  int64_t retries = 1;                    // of a call that timed out or broke
  std::string gate;                       // label of another part; empty: none
  std::optional<OnRewardError> on_error;  // unset: the section's
  std::optional<double> error_score;
  std::map<std::string, std::string> options;  // meaning is the reward's, e.g. marker, pattern

  void visit(FieldVisitor& v);
};

struct RewardConfig {
  std::vector<RewardPartConfig> parts;
  std::string rubric;  // file of a rubric, instead of parts
  OnRewardError on_error = OnRewardError::kSkipSample;
  double error_score = 0.0;  // with kScore: stands in for the score of the part that failed
  int64_t threads = 2;       // that score while responses are sampled

  void visit(FieldVisitor& v);
};

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys in full.
Status validate(const RewardConfig& config);

}  // namespace gradus::rewards
