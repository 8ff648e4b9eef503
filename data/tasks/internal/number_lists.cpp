// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "data/tasks/internal/generator.h"

// Tasks about lists of numbers.
namespace gradus::data {
namespace {

constexpr int64_t kMaxCount = 20;

// `count` different numbers in [low, high], ascending.
std::vector<int64_t> distinct_numbers(int64_t count, int64_t low, int64_t high,
                                      RngSequence& random) {
  std::set<int64_t> numbers;
  while (static_cast<int64_t>(numbers.size()) < count) numbers.insert(random.between(low, high));
  return {numbers.begin(), numbers.end()};
}

std::string with_newline(const std::string& lines) { return lines.empty() ? lines : lines + "\n"; }

std::optional<Problem> make_largest_number(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t count = dials[0], highest = power_of_10(dials[1]) - 1;
  // The largest is drawn first, uniformly: of independent draws it would crowd at the top.
  const int64_t largest = random.between(count - 1, highest);
  std::vector<int64_t> numbers = distinct_numbers(count - 1, 0, largest - 1, random);
  numbers.push_back(largest);
  Problem problem;
  problem.key = "max " + join_numbers(numbers, " ");
  shuffle(numbers, random);
  problem.question =
      fmt::format("Which of these numbers is the largest: {}?", join_numbers(numbers, ", "));
  problem.compact = fmt::format("max {}=", join_numbers(numbers, " "));
  problem.answer = std::to_string(largest);
  int64_t best = numbers[0];
  for (size_t i = 1; i < numbers.size(); ++i) {
    const int64_t larger = std::max(best, numbers[i]);
    problem.steps = with_newline(problem.steps) +
                    fmt::format("Of {} and {}, {} is larger.", best, numbers[i], larger);
    problem.compact_steps += fmt::format("{} {}>{};", best, numbers[i], larger);
    best = larger;
  }
  problem.compact_steps += problem.answer;
  return problem;
}

std::string list_contradiction(std::span<const int64_t> dials) {
  // Twice as many numbers as are drawn, so that drawing different ones ends soon.
  const int64_t num_values = power_of_10(dials[1]);
  if (num_values >= 2 * dials[0]) return "";
  return fmt::format("count: is {}; with digits {} at most {} is possible", dials[0], dials[1],
                     num_values / 2);
}

std::optional<Problem> make_number_sorting(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t count = dials[0], highest = power_of_10(dials[1]) - 1;
  const bool is_descending = dials[2] != 0;
  std::vector<int64_t> sorted = distinct_numbers(count, 0, highest, random);
  if (is_descending) std::reverse(sorted.begin(), sorted.end());
  std::vector<int64_t> numbers = sorted;
  while (numbers == sorted) shuffle(numbers, random);
  Problem problem;
  problem.question = fmt::format("Sort these numbers from {}: {}.",
                                 is_descending ? "largest to smallest" : "smallest to largest",
                                 join_numbers(numbers, ", "));
  problem.compact =
      fmt::format("{} {}=", is_descending ? "down" : "up", join_numbers(numbers, " "));
  problem.answer = join_numbers(sorted, " ");
  problem.key = (is_descending ? "down " : "up ") + problem.answer;
  // Selection sort: the next one and what is left.
  std::vector<int64_t> rest = numbers;
  for (const int64_t next : sorted) {
    std::erase(rest, next);
    problem.steps = with_newline(problem.steps) + fmt::format("Next is {}", next) +
                    (rest.empty() ? "." : fmt::format("; left are {}.", join_numbers(rest, ", ")));
    if (!rest.empty())
      problem.compact_steps += fmt::format("{}:{};", next, join_numbers(rest, " "));
  }
  problem.compact_steps += problem.answer;
  return problem;
}

std::optional<Problem> make_digit_completion(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t modulus = dials[0], num_given = dials[1], num_asked = dials[2];
  const int64_t start = random.between(0, modulus - 1), difference = random.between(1, modulus - 1);
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < num_given + num_asked; ++i) {
    numbers.push_back((start + i * difference) % modulus);
  }
  const std::span all(numbers);
  const auto given = all.first(static_cast<size_t>(num_given));
  const auto asked = all.subspan(static_cast<size_t>(num_given));
  Problem problem;
  problem.question = fmt::format(
      "Each number of the sequence {} is the one before it plus a fixed number, minus {} when the "
      "sum is "
      "{} or more. Give the next {}, separated by spaces.",
      join_numbers(given, ", "), modulus, modulus,
      num_asked == 1 ? "number" : fmt::format("{} numbers", num_asked));
  problem.compact = fmt::format("{} m{} n{}=", join_numbers(given, " "), modulus, num_asked);
  problem.answer = join_numbers(asked, " ");
  problem.steps = fmt::format("The fixed number is {}.", difference);
  for (size_t i = static_cast<size_t>(num_given); i < numbers.size(); ++i) {
    const int64_t sum = numbers[i - 1] + difference;
    problem.steps += fmt::format("\n{} + {} = {}", numbers[i - 1], difference, sum);
    if (sum >= modulus) problem.steps += fmt::format(", minus {} is {}", modulus, numbers[i]);
  }
  problem.compact_steps = fmt::format("+{};{}", difference, problem.answer);
  return problem;
}

}  // namespace

std::vector<Generator> number_list_generators() {
  return {
      {"largest_number",
       "the largest of several numbers",
       "math",
       "N",
       "number",
       "marker=Answer:",
       {{"count", 3, 2, kMaxCount, "how many numbers"},
        {"digits", 2, 1, 9, "numbers have at most this many digits"}},
       make_largest_number,
       list_contradiction},
      {"number_sorting",
       "numbers put in order",
       "math",
       "the numbers separated by spaces",
       "exact",
       "marker=Answer:",
       {{"count", 5, 2, kMaxCount, "how many numbers"},
        {"digits", 2, 1, 9, "numbers have at most this many digits"},
        {"descending", 0, 0, 1, "1: from largest to smallest"}},
       make_number_sorting,
       list_contradiction},
      {"digit_completion",
       "an arithmetic progression that wraps round, continued",
       "math",
       "the numbers separated by spaces",
       "exact",
       "marker=Answer:",
       {{"modulus", 10, 2, 1000, "numbers are 0..modulus-1"},
        {"given", 3, 2, 10, "how many numbers are shown"},
        {"asked", 3, 1, 50, "how many are asked for"}},
       make_digit_completion},
  };
}

}  // namespace gradus::data
