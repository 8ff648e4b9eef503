// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "rewards/math/expression.h"

// Whether two scalar expressions have one value, exactly: fractions by FLINT's fmpq, polynomials
// and rational functions by fmpz_mpoly, constants with radicals by a separation bound, other
// constants by Calcium, the rest by Arb's balls at seeded points. Work is bounded by the sizes of
// the expressions, never by a clock, so verdicts do not depend on the machine. Thread-safe; a
// thread's caches in FLINT and Arb go with the thread.
namespace gradus::rewards::math {

enum class Equality { kEqual, kDifferent, kUndecided };

struct Decision {
  Equality equality = Equality::kUndecided;
  std::string rule;  // what decided: "fraction", "polynomial identity", ...
};

// `is_compat` also evaluates sums, integrals, limits and derivatives, and takes a pair that Calcium
// leaves undecided and that agrees to 512 bits for equal.
Decision compare_scalars(const Expression& a, const Expression& b, bool is_compat);

// Whether two constants differ by less than 2^-54, Math-Verify's numeric zero.
bool agree_to_15_digits(const Expression& a, const Expression& b);

// The value of an expression of fractions alone; nothing for a division by zero, anything else in
// it, or a result of more than 1,000,000 bits.
std::optional<Rational> rational_value(const Expression& a);

// Sign of a - b for two real constants, when it can be certified; inf is above all.
std::optional<int> compare_order(const Expression& a, const Expression& b);

// Whether |a - b| <= tolerance, certified; `b` is a decimal. Nothing when undecided or when a is no
// constant.
std::optional<bool> is_close(const Expression& a, const Rational& b, const Rational& tolerance);

// Nearest multiple of 10^-decimals to a real constant, ties to even; nothing when undecided.
std::optional<Rational> rounded(const Expression& a, int64_t decimals);

// `a` with `value` in place of the variable.
Expression substituted(const Expression& a, const std::string& variable, const Expression& value);

// `a` with 3/7, 8/7, 13/7, ... for its variables in the order of their names: where formulas of the
// same variables are compared by their values.
Expression at_sample_point(const Expression& a);

}  // namespace gradus::rewards::math
