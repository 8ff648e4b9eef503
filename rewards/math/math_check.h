// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/status.h"
#include "data/reward_types.h"

// Whether a response gives the answer that a ground truth states: numbers, formulas, sets,
// intervals, tuples, matrices, equations, inequalities, choices, in LaTeX or plain notation.
//
// Two modes. `strict`, for training: decides by what the texts mean and refuses what merely looks
// alike (docs/rewards.md lists the rules). `compat`: the verdicts of the PyPI package math-verify
// 0.9.0 with boxes first, its false positives included, to reproduce published numbers.
//
// Verdicts are functions of the two texts: no clocks, no signals, no state. Limits on sizes bound
// the time of a check. Thread-safe.
namespace gradus::rewards::math {

enum class MathMode { kStrict, kCompat };
enum class MathTargets { kBoth, kLatex, kExpression };  // what compat looks for

struct MathOptions {
  MathMode mode = MathMode::kStrict;
  // compat only, as in Math-Verify.
  MathTargets targets = MathTargets::kBoth;
  int64_t decimals = 6;                       // two numbers are rounded to, one a decimal
  bool names_matter = true;                   // f(x) is not f(y)
  bool compares_relations_with_sets = false;  // -2 < x < 7 for a ground truth (-2, 7)
};

struct MathVerdict {
  // kOk, kUndecided (neither equal nor different could be shown) or kInvalidGold.
  data::RewardStatus status = data::RewardStatus::kOk;
  double score = 0;         // 0 or 1, with kOk
  std::string rule;         // what decided, for people: "polynomial identity", "units differ"
  std::string gold_parsed;  // the two as they were read, in plain notation; empty: not read
  std::string answer_parsed;
};

// `gold` and `answer` are texts as a model would write them. In strict mode a ground truth may also
// be one bare expression.
MathVerdict check_math(std::string_view gold, std::string_view answer,
                       const MathOptions& options = {});

// InvalidArgument when the ground truth cannot be judged against.
Status check_math_gold(std::string_view gold, const MathOptions& options = {});

}  // namespace gradus::rewards::math
