// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "rewards/math/expression.h"

// Where in a response its answer stands, and what it says. Only the last 64 KiB of a text are
// looked at; time is linear in them. Thread-safe.
namespace gradus::rewards::math {

inline constexpr std::string_view kNoAnswer = "no answer in the text";

enum class Targets { kBoth, kLatex, kExpression };

struct Extracted {
  Expression value;       // null: nothing found, or nothing that can be read
  std::string text;       // what was taken for the answer, for people and for comparison as text
  bool is_found = false;  // something stood where an answer is looked for
  std::string note;       // why there is no answer: "no answer after </think>"
};

// As Math-Verify 0.9.0 finds it, boxes first: LaTeX environments, plain numbers and expressions,
// by priority of what introduces them, the last one that can be read.
Extracted extract_compat(std::string_view text, Targets targets);

// Strict: after the last </think> only; the last \boxed or \fbox group by its braces (boxes side by
// side are one list); else as above, signs in Unicode and units being read.
Extracted extract_strict(std::string_view text);

// A ground truth in strict mode: the whole text where it is one expression, else as extract_strict.
Extracted extract_gold(std::string_view text);

// Where `command` ("\boxed") last begins before `limit`; npos when nowhere. Fast: jumps from one
// backslash to the one before.
size_t last_command(std::string_view text, std::string_view command, size_t limit);

// The capital letter, A to J, that a text names as its choice: "The answer is (B).", "**B**",
// "\boxed{B. 42}"; 0 when it names none or more than one.
char chosen_letter(std::string_view text);

// The text of a LaTeX environment as Math-Verify cleans it before parsing: boxes opened
// (`only_last_boxes`: the last group of them), units cut off, fractions mended.
std::string normalise_compat(std::string_view text, bool only_last_boxes);

// Contents of the last group of boxes, in order: those less than 10 bytes apart, or less than 70
// with a comma, semicolon, "and" or "or" between. Boxes that do not close are left out.
struct Boxes {
  std::vector<std::string_view> contents;
  size_t end = 0;  // after the last one
};
Boxes last_boxes(std::string_view text);

}  // namespace gradus::rewards::math
