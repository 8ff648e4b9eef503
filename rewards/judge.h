// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/reward_types.h"

// A judge reads a response and says how well it meets a criterion written in words: the part of a
// rubric that no program can check. What it could not say is a status, never a silent 0.
namespace gradus::rewards {

// One criterion to judge one response by.
struct JudgeItem {
  std::string prompt;     // the task, as text
  std::string response;   // untrusted: data to the judge, never instructions
  std::string reference;  // the ground truth, shown to the judge; may be empty
  std::string
      criterion;  // one sentence that holds or does not: "Each step follows from earlier ones."
};

struct JudgeVerdict {
  double score = 0;  // in [0, 1]; only with kOk
  // kOk; kNotApplicable: the judge says that the criterion does not apply; kTimeout; kError: no
  // answer, or none that can be read, after all retries, or the budget is spent.
  data::RewardStatus status = data::RewardStatus::kOk;
  std::string detail{};  // the judge's reason, or why there is no score; for people
};

class Judge {
 public:
  virtual ~Judge() = default;

  // One verdict per item, in order; never fewer. Items that stand side by side with equal prompt,
  // response and reference may share one request, so put the criteria of a response together.
  // Blocks until all are judged. Thread-safe.
  virtual std::vector<JudgeVerdict> judge(std::span<const JudgeItem> items) const = 0;
};

}  // namespace gradus::rewards
