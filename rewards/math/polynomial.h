// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "rewards/math/scalar.h"

namespace gradus::rewards::math {

// Compares two expressions as rational functions over the integers, variables and whatever else is
// no sum, product or whole power (roots, sines, pi) being the generators. kEqual is a proof;
// kDifferent is one too, given only when all generators are variables. kUndecided otherwise, and
// for more than 16 generators or 4,000 terms.
Equality compare_as_polynomials(const Expression& a, const Expression& b);

}  // namespace gradus::rewards::math
