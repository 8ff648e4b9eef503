// SPDX-License-Identifier: Apache-2.0
#include "common/internal/yaml_scalar.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

namespace gradus::internal {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// `text` without its sign.
std::string_view magnitude_of(std::string_view text) {
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  return text;
}

bool has_leading_zero(std::string_view text) {
  const std::string_view magnitude = magnitude_of(text);
  return magnitude.size() >= 2 && magnitude[0] == '0' && is_digit(magnitude[1]);
}

// `text` in decimal without leading zeros and without the separators that people use.
std::string cleaned(std::string_view text) {
  std::string clean;
  for (const char c : magnitude_of(text)) {
    if (c == '_' || (c == '0' && (clean.empty() || clean == "0"))) continue;
    clean += c;
  }
  if (clean.empty() || !is_digit(clean[0])) clean.insert(0, "0");
  return (text[0] == '-' ? "-" : "") + clean;
}

// Digits, a point, digits, an exponent; nothing else, so no hexadecimal, inf and nan.
bool is_decimal(std::string_view text) {
  text = magnitude_of(text);
  size_t num_digits = 0;
  const auto skip_digits = [&] {
    while (!text.empty() && is_digit(text[0])) {
      text.remove_prefix(1);
      ++num_digits;
    }
  };
  skip_digits();
  if (!text.empty() && text[0] == '.') {
    text.remove_prefix(1);
    skip_digits();
  }
  if (num_digits == 0) return false;
  if (!text.empty() && (text[0] == 'e' || text[0] == 'E')) {
    text = magnitude_of(text.substr(1));
    num_digits = 0;
    skip_digits();
    if (num_digits == 0) return false;
  }
  return text.empty();
}

// Nothing if it does not fit a double.
std::optional<double> parse_double(std::string_view text) {
  if (text[0] == '+') text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string without_separators(const std::string& text) {
  std::string clean;
  for (const char c : text) {
    if (c != '_') clean += c;
  }
  return clean;
}

bool is_infinite_or_nan(const std::string& text) {
  std::string word;
  for (const char c : magnitude_of(text)) word += static_cast<char>(std::tolower(c));
  return word == ".inf" || word == ".nan" || word == "inf" || word == "nan" || word == "infinity";
}

}  // namespace

ScalarReading<int64_t> read_integer(const std::string& text) {
  const std::string_view magnitude = magnitude_of(text);
  const bool has_only_digits =
      !magnitude.empty() && std::all_of(magnitude.begin(), magnitude.end(), is_digit);
  if (has_only_digits && !has_leading_zero(text)) {
    const char* begin = text.data() + (text[0] == '+' ? 1 : 0);
    int64_t value = 0;
    const auto error = std::from_chars(begin, text.data() + text.size(), value).ec;
    if (error == std::errc()) return {value, "", ""};
    return {0, "an integer of at most 64 bits", ""};
  }
  if (has_only_digits) return {0, "an integer without leading zeros", "write " + cleaned(text)};
  const std::string clean = without_separators(text);
  if (is_decimal(clean)) {
    const std::optional<double> number = parse_double(clean);
    if (number && std::abs(*number) < 0x1p53 && std::floor(*number) == *number) {
      return {0, "an integer", fmt::format("write {}", static_cast<int64_t>(*number))};
    }
  }
  if (magnitude.substr(0, 2) == "0x" || magnitude.substr(0, 2) == "0o") {
    return {0, "an integer", "write it in decimal"};
  }
  return {0, "an integer", ""};
}

ScalarReading<double> read_number(const std::string& text) {
  if (is_infinite_or_nan(text)) return {0, "a finite number", ""};
  if (!is_decimal(text)) {
    const std::string clean = without_separators(text);
    if (is_decimal(clean)) return {0, "a number", "write " + clean};
    return {0, "a number", ""};
  }
  if (has_leading_zero(text)) {
    return {0, "a number without leading zeros", "write " + cleaned(text)};
  }
  // Out of double's range: strtod tells which end, from_chars does not.
  const std::optional<double> parsed = parse_double(text);
  const double value = parsed ? *parsed : std::strtod(text.c_str(), nullptr);
  if (std::abs(value) > std::numeric_limits<float>::max()) {
    return {0, "a number of at most 3.4e38 in size", ""};
  }
  const std::string_view magnitude = magnitude_of(text);
  const std::string_view digits = magnitude.substr(0, magnitude.find_first_of("eE"));
  const bool is_zero = digits.find_first_of("123456789") == std::string_view::npos;
  if (!is_zero && std::abs(value) < std::numeric_limits<float>::min()) {
    return {0, "0 or at least 1.2e-38 in size", "smaller numbers are 0 in single precision"};
  }
  return {value, "", ""};
}

ScalarReading<bool> read_bool(const std::string& text) {
  if (text == "true") return {true, "", ""};
  if (text == "false") return {false, "", ""};
  return {false, "true or false", ""};
}

}  // namespace gradus::internal
