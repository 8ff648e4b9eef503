// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "data/types.h"

// What a verifier says about a trajectory. A check that could not be made is a status, never a
// silent 0.
namespace gradus::data {

enum class RewardStatus {
  kOk,             // `score` holds
  kNotApplicable,  // this reward has nothing to say about this task; it leaves the sum
  kUndecided,      // the verifier ran and cannot tell
  kTimeout,
  kError,        // the verifier broke
  kInvalidGold,  // the ground truth itself cannot be read
};
const char* reward_status_name(RewardStatus status);  // "ok", "not_applicable", ...

// All but kOk and kNotApplicable.
bool is_failure(RewardStatus status);

// One term of a trajectory's reward.
struct WeightedPart {
  std::string name;
  double raw = 0;  // the verifier's score; only with kOk
  double weight = 1;
  double weighted = 0;  // what entered the total; with a failed check, what the policy put there
  RewardStatus status = RewardStatus::kOk;
  std::string detail{};     // why: "no number after 'Answer:'", for people
  std::string answer{};     // what the verifier took for the answer, normalised; votes of maj@k
  int64_t num_retries = 0;  // calls after the first, which timed out or broke
};

// Example: {{7, 2}, 1.1, true, "", {{"number", 1, 1, 1, kOk, "", "46"}, {"format", 1, 0.1, 0.1,
// kOk}}}.
struct RewardBreakdown {
  RequestId id;
  double total = 0;  // sum of `weighted`; meaningless unless is_scored
  bool is_scored = false;
  std::string reason{};  // why it is not scored
  std::vector<WeightedPart> parts{};
};

}  // namespace gradus::data
