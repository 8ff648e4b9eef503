// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "rewards/math/expression.h"
#include "rewards/math/scalar.h"

namespace gradus::rewards::math {

struct CompatOptions {
  int64_t decimals = 6;                       // to which two numbers are rounded, one a decimal
  bool names_matter = true;                   // f(x) is not f(y)
  bool compares_relations_with_sets = false;  // also a set as ground truth against a relation
};

// By the rules of Math-Verify 0.9.0, its false positives included. Undecided only where the limits
// on work stop it.
Decision compare_compat(const Expression& gold, const Expression& answer,
                        const CompatOptions& options);

struct StrictOptions {
  // A decimal stands for an exact value when it is within this and within 1e-5 of the value itself.
  Rational tolerance = Rational(1, 2000000);
};

// By what the texts mean: see docs/rewards.md for the rules.
Decision compare_strict(const Expression& gold, const Expression& answer,
                        const StrictOptions& options);

// e with each +- as + and as -, all of them together; {e} when there is none.
std::vector<Expression> both_signs(const Expression& e);

}  // namespace gradus::rewards::math
