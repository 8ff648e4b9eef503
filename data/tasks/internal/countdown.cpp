// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/tasks/internal/generator.h"

// Countdown: make a target from given numbers, each used once.
namespace gradus::data {
namespace {

// A partial expression with its value and how tightly its last operation binds.
struct Term {
  int64_t value;
  std::string text;
  int binding;  // 0 sum or difference, 1 product or quotient, 2 number
};

std::string in_brackets_if(bool needed, const std::string& text) {
  return needed ? "(" + text + ")" : text;
}

// `a op b`, or nothing when the value is not a whole number above zero.
std::optional<Term> combine(const Term& a, char op, const Term& b) {
  int64_t value = 0;
  switch (op) {
    case '+':
      value = a.value + b.value;
      break;
    case '-':
      value = a.value - b.value;
      break;
    case '*':
      value = a.value * b.value;
      break;
    default:
      if (a.value % b.value != 0) return std::nullopt;
      value = a.value / b.value;
      break;
  }
  if (value <= 0) return std::nullopt;
  const int binding = op == '+' || op == '-' ? 0 : 1;
  // On the right, a chain of the same strength needs brackets after - and /; they are set after *
  // too, so that the text is worked out in the order of the steps.
  const bool right = b.binding < binding || (b.binding == binding && op != '+');
  return Term{value,
              in_brackets_if(a.binding < binding, a.text) + op + in_brackets_if(right, b.text),
              binding};
}

std::optional<Problem> make_countdown(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t count = dials[0], max_number = dials[1], min_target = dials[2];
  const int64_t max_target = dials[3];
  constexpr int64_t kLargestOnTheWay = 1000000;
  std::vector<int64_t> numbers;
  std::vector<Term> terms;
  for (int64_t i = 0; i < count; ++i) {
    numbers.push_back(random.between(1, max_number));
    terms.push_back({numbers.back(), std::to_string(numbers.back()), 2});
  }
  Problem problem;
  while (terms.size() > 1) {
    shuffle(terms, random);
    const Term b = terms.back();
    terms.pop_back();
    const Term a = terms.back();
    terms.pop_back();
    const char op = "+-*/"[random.below(4)];
    const std::optional<Term> term = combine(a, op, b);
    if (!term.has_value() || term->value > kLargestOnTheWay) return std::nullopt;
    if (!problem.steps.empty()) problem.steps += '\n';
    problem.steps += fmt::format("{} {} {} = {}", a.value, op, b.value, term->value);
    problem.compact_steps += fmt::format("{}{}{}={};", a.value, op, b.value, term->value);
    terms.push_back(*term);
  }
  const Term& whole = terms[0];
  if (whole.value < min_target || whole.value > max_target) return std::nullopt;
  if (std::find(numbers.begin(), numbers.end(), whole.value) != numbers.end()) return std::nullopt;
  problem.question = fmt::format(
      "Make {} from the numbers {} with +, -, * and /. Use each number exactly once; parentheses "
      "are "
      "allowed.",
      whole.value, join_numbers(numbers, ", "));
  problem.compact = fmt::format("{}>{}=", join_numbers(numbers, " "), whole.value);
  problem.answer = whole.text;
  problem.compact_steps += whole.text;
  problem.ground_truth =
      nlohmann::ordered_json{{"target", whole.value}, {"numbers", numbers}}.dump();
  std::sort(numbers.begin(), numbers.end());
  problem.key = fmt::format("{}>{}", join_numbers(numbers, " "), whole.value);
  return problem;
}

std::string contradiction(std::span<const int64_t> dials) {
  if (dials[2] <= dials[3]) return "";
  return fmt::format("min_target: is {}; expected at most max_target, {}", dials[2], dials[3]);
}

}  // namespace

Generator countdown_generator() {
  return {"countdown",
          "an expression of given numbers that makes a target",
          "math",
          "the expression",
          "countdown",
          "marker=Answer:",
          {{"numbers", 3, 2, 6, "how many numbers are given"},
           {"max_number", 20, 5, 100, "numbers are uniform in 1..max_number"},
           {"min_target", 10, 1, 100000, "smallest target"},
           {"max_target", 100, 1, 100000, "largest target"}},
          make_countdown,
          contradiction};
}

}  // namespace gradus::data
