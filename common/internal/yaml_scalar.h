// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

// Reading of plain YAML scalars, stricter than yaml-cpp, which takes 010 for 8, .nan for a number
// and 1e-60 for the float 0. A failure says what to write instead.
namespace gradus::internal {

template <class T>
struct ScalarReading {
  T value{};
  std::string expected;  // empty if the text was read; else what it must be, e.g. "an integer"
  std::string remedy;    // e.g. "write 10", may be empty
};

// Decimal digits with an optional sign, no leading zeros.
ScalarReading<int64_t> read_integer(const std::string& text);

// Decimal number, with or without fraction and exponent; finite, and if not 0 within the range of
// normal floats, since single precision is what values end in.
ScalarReading<double> read_number(const std::string& text);

// true or false.
ScalarReading<bool> read_bool(const std::string& text);

}  // namespace gradus::internal
