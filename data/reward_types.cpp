// SPDX-License-Identifier: Apache-2.0
#include "data/reward_types.h"

namespace gradus::data {

const char* reward_status_name(RewardStatus status) {
  switch (status) {
    case RewardStatus::kOk:
      return "ok";
    case RewardStatus::kNotApplicable:
      return "not_applicable";
    case RewardStatus::kUndecided:
      return "undecided";
    case RewardStatus::kTimeout:
      return "timeout";
    case RewardStatus::kError:
      return "error";
    case RewardStatus::kInvalidGold:
      return "invalid_gold";
  }
  GRADUS_CHECK(false, "reward status out of range");
}

bool is_failure(RewardStatus status) {
  return status != RewardStatus::kOk && status != RewardStatus::kNotApplicable;
}

}  // namespace gradus::data
