// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"

// What a response earns: the `reward` section of a run's YAML.
namespace gradus::rewards {

// One term of the weighted sum.
struct RewardPartConfig {
  std::string name;                            // in the reward registry
  double weight = 1.0;                         // 0 only measures
  std::map<std::string, std::string> options;  // meaning is the reward's, e.g. marker, pattern

  void visit(FieldVisitor& v);
};

// What happens to a sample whose check failed; never a silent 0.
enum class OnRewardError { kSkipSample, kSkipGroup, kAbort };

struct RewardConfig {
  std::vector<RewardPartConfig> parts;
  OnRewardError on_error = OnRewardError::kSkipSample;

  void visit(FieldVisitor& v);
};

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys in full.
Status validate(const RewardConfig& config);

}  // namespace gradus::rewards
