// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace gradus::rewards::code {

enum class OutputForm {
  kTokens,  // what stands between white space, in order
  kExact,   // byte for byte
  kLines,   // lines in any order, each by its tokens; empty lines do not count
};

// Whether what a program printed is what it should have. With a tolerance above 0, tokens that are
// both decimal numbers may differ by it, absolutely or relative to the expected one.
bool is_same_output(std::string_view printed, std::string_view expected, OutputForm form,
                    double tolerance);

// Whether two JSON texts have one value: whole numbers digit by digit at any size, other numbers as
// doubles (within the tolerance, as above), members in any order. True and 1 differ. What is no
// JSON, such as NaN, or is nested more than 200 deep, equals nothing.
bool is_same_json(std::string_view returned, std::string_view expected, double tolerance);

// The value in a JSON list of one; empty if it is none.
std::string only_element(std::string_view json);

}  // namespace gradus::rewards::code
