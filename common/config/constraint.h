// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace gradus {

// What a configuration field accepts beyond its type. Made by the functions below, which read as
// the sentence in the documentation: `in_open(0, 1)`, `one_of({"filter", "error"})`. Value type.
struct Constraint {
  std::optional<double> low = {};
  std::optional<double> high = {};
  bool allows_low = true;  // whether `low` itself is in the range
  bool allows_high = true;
  std::vector<std::string> choices =
      {};                          // names, in the order of the enum's values when there is one
  bool must_be_given = false;      // an empty text, list or map is refused
  std::string shorthand_key = "";  // of a section: the key that a bare text stands for
  std::string remedy = "";         // ends the message, e.g. "use 1 to disable"

  // The same constraint whose message ends with `; text`.
  Constraint with_remedy(std::string text) &&;

  // What is wrong with a value as "must be in (0, 1]", or an empty text if nothing is.
  std::string problem_with(double value) const;
  std::string problem_with(int64_t value) const;
  std::string problem_with(const std::string& value) const;
  // For lists and maps of `size` entries.
  std::string problem_with_size(size_t size) const;

  // The range as it stands in documents: "in (0, 1]", "at least 1", "one of a, b", "" if there is
  // none.
  std::string describe() const;
};

Constraint in_open(double low, double high);       // (low, high)
Constraint in_closed(double low, double high);     // [low, high]
Constraint in_half_open(double low, double high);  // [low, high)
Constraint in_left_open(double low, double high);  // (low, high]
Constraint at_least(double low);
Constraint at_most(double high);
Constraint greater_than(double low);
Constraint one_of(std::vector<std::string> choices);
Constraint non_empty();
// For a section: `section: text` is read as `section: {key: text}`.
Constraint shorthand_for(std::string key);

}  // namespace gradus
