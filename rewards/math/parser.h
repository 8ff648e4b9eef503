// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "rewards/math/expression.h"

namespace gradus::rewards::math {

// How a text is read. compat follows the grammar of Math-Verify 0.9.0 where the two differ: units
// are not read but have been cut off, i is a variable, +- stands only between the members of a
// list.
struct ParserOptions {
  bool is_compat = false;
};

// The tree of a LaTeX or plain expression, list, set, relation, matrix or piece of text; null when
// the text is none of these, is longer than 4 KiB, nests deeper than 100 or has more than 10,000
// tokens.
Expression parse_expression(std::string_view text, const ParserOptions& options);

// What a plain expression of digits and + - * / ^ ( ) says; null when a programming language would
// not read it. For the un-delimited expressions of compat.
Expression parse_arithmetic(std::string_view text);

// The canonical name of a unit ("cm^2", "degree", "USD"), "" for what is no unit.
std::string canonical_unit(std::string_view text);

}  // namespace gradus::rewards::math
