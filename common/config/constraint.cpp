// SPDX-License-Identifier: Apache-2.0
#include "common/config/constraint.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/strings.h"

namespace gradus {

Constraint Constraint::with_remedy(std::string text) && {
  remedy = std::move(text);
  return std::move(*this);
}

std::string Constraint::describe() const {
  if (!choices.empty()) return "one of " + join(choices, ", ");
  if (low && high) {
    return fmt::format("in {}{}, {}{}", allows_low ? '[' : '(', *low, *high,
                       allows_high ? ']' : ')');
  }
  if (low) return fmt::format("{} {}", allows_low ? "at least" : "greater than", *low);
  if (high) return fmt::format("{} {}", allows_high ? "at most" : "less than", *high);
  return must_be_given ? "not empty" : "";
}

std::string Constraint::problem_with(double value) const {
  const bool is_above_low = !low || value > *low || (allows_low && value == *low);
  const bool is_below_high = !high || value < *high || (allows_high && value == *high);
  return is_above_low && is_below_high ? "" : "must be " + describe();
}

std::string Constraint::problem_with(int64_t value) const {
  return problem_with(static_cast<double>(value));
}

std::string Constraint::problem_with(const std::string& value) const {
  if (!choices.empty()) {
    if (std::find(choices.begin(), choices.end(), value) != choices.end()) return "";
    return "must be " + describe();
  }
  return problem_with_size(value.size());
}

std::string Constraint::problem_with_size(size_t size) const {
  return must_be_given && size == 0 ? "must not be empty" : "";
}

Constraint in_open(double low, double high) {
  return {.low = low, .high = high, .allows_low = false, .allows_high = false};
}
Constraint in_closed(double low, double high) { return {.low = low, .high = high}; }
Constraint in_half_open(double low, double high) {
  return {.low = low, .high = high, .allows_high = false};
}
Constraint in_left_open(double low, double high) {
  return {.low = low, .high = high, .allows_low = false};
}
Constraint at_least(double low) { return {.low = low}; }
Constraint at_most(double high) { return {.high = high}; }
Constraint greater_than(double low) { return {.low = low, .allows_low = false}; }
Constraint one_of(std::vector<std::string> choices) { return {.choices = std::move(choices)}; }
Constraint non_empty() { return {.must_be_given = true}; }
Constraint shorthand_for(std::string key) { return {.shorthand_key = std::move(key)}; }

}  // namespace gradus
