// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace gradus::rewards {

// Value of an arithmetic expression as a fraction in lowest terms, denominator > 0.
struct Fraction {
  int64_t numerator = 0;
  int64_t denominator = 1;
  bool operator==(const Fraction&) const = default;
};

struct Expression {
  Fraction value;
  std::vector<int64_t> numbers;  // as they occur, from left to right
};

// Reads whole numbers with + - * / (also as U+00D7, U+00F7, U+2212), brackets and spaces; there is
// no unary minus and no power. InvalidArgument, in a few words, for anything else, more than 1,000
// bytes, 50 nested brackets, division by zero, or a value beyond 64 bits on the way.
Result<Expression> evaluate(std::string_view text);

}  // namespace gradus::rewards
