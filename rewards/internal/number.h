// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// Numbers as people and models write them, compared as the rationals they are and never as floats:
// 0.1 + 0.2 written out is 0.3, and no two different long integers are equal.
namespace gradus::rewards {

// digits * 10^exponent; canonical: no leading or trailing zeros, zero is empty digits with exponent
// 0 and no sign.
struct Decimal {
  bool is_negative = false;
  std::string digits;
  int64_t exponent = 0;
  bool operator==(const Decimal&) const = default;
};

// `numerator / denominator`.
struct Number {
  Decimal numerator;
  int64_t denominator = 1;  // in [1, 10^18)
};

// A number found in a text: [begin, end) in bytes.
struct FoundNumber {
  size_t begin = 0;
  size_t end = 0;
  bool has_percent = false;  // a percent sign follows and is within [begin, end)
  std::string problem;  // why `value` does not hold: "division by zero", "more than 1000 digits"
  Number value;
};

// The first number at or after `from`: sign (also U+2212 and U+2013), digits with commas at
// thousands, decimal point, exponent, and a whole denominator after a slash without spaces. A minus
// after a letter, a digit or a closing bracket is an operation and not a sign.
std::optional<FoundNumber> find_number(std::string_view text, size_t from);

// The last number of the text; linear time.
std::optional<FoundNumber> last_number(std::string_view text);

// The one text of a value: "-12.5", "1/3" in lowest terms, "6e+40" where zeros would be many.
std::string canonical_text(const Number& number);

// |a - b| <= tolerance, exactly. `tolerance` is not negative.
bool is_within(const Number& a, const Number& b, const Decimal& tolerance);

}  // namespace gradus::rewards
