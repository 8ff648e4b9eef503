// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "rewards/math/scalar.h"

namespace gradus::rewards::math {

// For an expression of fractions, i, the four operations and roots: a number n of bits such that
// the value is 0 or at least 2^-n in absolute value (Burnikel, Funke, Mehlhorn, Schirra and Schmitt
// 2009, "A separation bound for real algebraic expressions", section 4, rules for +, -, *, / and
// roots). Nothing for other expressions and for bounds beyond 16,000 bits.
std::optional<double> separation_bits(const Expression& a);

// Equality of two constants in Calcium's fields; its own limits are set low, so that the work stays
// in milliseconds. kUndecided also for what it does not know (floor, gamma, more than 80 nodes).
Equality compare_by_calcium(const Expression& a, const Expression& b);

}  // namespace gradus::rewards::math
