// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "data/tasks/internal/generator.h"

// Tasks whose answer is one number got by calculation.
namespace gradus::data {
namespace {

// Uniform among the numbers of exactly `digits` digits; one digit starts at `low`.
int64_t number_of_digits(int64_t digits, int64_t low, RngSequence& random) {
  const int64_t smallest = digits == 1 ? low : power_of_10(digits - 1);
  return random.between(smallest, power_of_10(digits) - 1);
}

void add_line(std::string& lines, const std::string& line) {
  if (!lines.empty()) lines += '\n';
  lines += line;
}

void add_part(std::string& parts, const std::string& part) {
  if (!parts.empty()) parts += ';';
  parts += part;
}

std::optional<Problem> make_chain_sum(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t num_terms = dials[0], digits = dials[1];
  const bool allows_negative = dials[2] != 0;
  Problem problem;
  int64_t total = number_of_digits(digits, 1, random);
  std::string spaced = std::to_string(total);
  problem.compact = spaced;
  for (int64_t i = 1; i < num_terms; ++i) {
    const int64_t term = number_of_digits(digits, 1, random);
    const bool is_minus = random.below(2) == 1 && (allows_negative || term <= total);
    const char sign = is_minus ? '-' : '+';
    const int64_t next = is_minus ? total - term : total + term;
    add_line(problem.steps, fmt::format("{} {} {} = {}", total, sign, term, next));
    add_part(problem.compact_steps, fmt::format("{}{}{}={}", total, sign, term, next));
    spaced += fmt::format(" {} {}", sign, term);
    problem.compact += fmt::format("{}{}", sign, term);
    total = next;
  }
  problem.compact += '=';
  problem.question = fmt::format("What is {}?", spaced);
  problem.answer = std::to_string(total);
  return problem;
}

std::optional<Problem> make_addition(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t digits = dials[0], count = dials[1];
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < count; ++i) numbers.push_back(number_of_digits(digits, 1, random));
  const int64_t sum = std::accumulate(numbers.begin(), numbers.end(), int64_t{0});
  Problem problem;
  problem.question = fmt::format("What is {}?", join_numbers(numbers, " + "));
  problem.compact = join_numbers(numbers, "+") + "=";
  problem.answer = std::to_string(sum);
  // Column by column from the right, as on paper; the carry comes last in each sum.
  int64_t carry = 0;
  for (int64_t column = 0; column < digits; ++column) {
    std::vector<int64_t> terms;
    for (const int64_t number : numbers) terms.push_back(number / power_of_10(column) % 10);
    if (column > 0) terms.push_back(carry);
    const int64_t total = std::accumulate(terms.begin(), terms.end(), int64_t{0});
    carry = total / 10;
    add_line(problem.steps, fmt::format("{} = {}, write {}, carry {}", join_numbers(terms, " + "),
                                        total, total % 10, carry));
    add_part(problem.compact_steps, fmt::format("{}={}", join_numbers(terms, "+"), total));
  }
  add_part(problem.compact_steps, problem.answer);
  std::sort(numbers.begin(), numbers.end());
  problem.key = join_numbers(numbers, "+");
  return problem;
}

std::optional<Problem> make_multiplication(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t digits = dials[0];
  const int64_t a = number_of_digits(digits, 2, random), b = number_of_digits(digits, 2, random);
  Problem problem;
  problem.question = fmt::format("What is {} * {}?", a, b);
  problem.compact = fmt::format("{}*{}=", a, b);
  problem.answer = std::to_string(a * b);
  // One partial product for each digit of b that is not zero.
  std::vector<int64_t> products;
  for (int64_t column = digits - 1; column >= 0; --column) {
    const int64_t part = b / power_of_10(column) % 10 * power_of_10(column);
    if (part == 0) continue;
    products.push_back(a * part);
    add_line(problem.steps, fmt::format("{} * {} = {}", a, part, a * part));
    add_part(problem.compact_steps, fmt::format("{}*{}={}", a, part, a * part));
  }
  if (products.size() > 1) {
    add_line(problem.steps, fmt::format("{} = {}", join_numbers(products, " + "), a * b));
    add_part(problem.compact_steps, fmt::format("{}={}", join_numbers(products, "+"), a * b));
  }
  problem.key = fmt::format("{}*{}", std::min(a, b), std::max(a, b));
  return problem;
}

std::optional<Problem> make_gcd(std::span<const int64_t> dials, RngSequence& random) {
  // The divisor is drawn first: of two random numbers it would be 1 in 61 % of all problems.
  const int64_t divisor = random.between(1, dials[0]);
  const int64_t x = random.between(1, dials[1]), y = random.between(1, dials[1]);
  if (x == y || std::gcd(x, y) != 1) return std::nullopt;
  int64_t a = divisor * x, b = divisor * y;
  Problem problem;
  problem.question = fmt::format("What is the greatest common divisor of {} and {}?", a, b);
  problem.compact = fmt::format("gcd {} {}=", a, b);
  problem.answer = std::to_string(divisor);
  problem.key = fmt::format("gcd {} {}", std::min(a, b), std::max(a, b));
  if (a < b) std::swap(a, b);
  while (b != 0) {
    add_line(problem.steps, fmt::format("{} mod {} = {}", a, b, a % b));
    add_part(problem.compact_steps, fmt::format("{}%{}={}", a, b, a % b));
    a = std::exchange(b, a % b);
  }
  add_part(problem.compact_steps, problem.answer);
  return problem;
}

std::optional<Problem> make_base_conversion(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t base = dials[0];
  const int64_t value = random.between(base, dials[1]);
  Problem problem;
  for (int64_t rest = value; rest > 0; rest /= base) {
    const char digit = "0123456789abcdef"[rest % base];
    problem.answer.insert(problem.answer.begin(), digit);
    add_line(problem.steps,
             fmt::format("{} / {} = {}, remainder {}", rest, base, rest / base, digit));
    add_part(problem.compact_steps, fmt::format("{}%{}={}", rest, base, digit));
  }
  add_part(problem.compact_steps, problem.answer);
  problem.question = fmt::format("Write the decimal number {} in base {}{}.", value, base,
                                 base > 10 ? ", with a for ten, b for eleven and so on" : "");
  problem.compact = fmt::format("{} b{}=", value, base);
  return problem;
}

std::string base_conversion_contradiction(std::span<const int64_t> dials) {
  if (dials[1] >= 4 * dials[0]) return "";
  return fmt::format("max_value: is {}; with base {} at least {} is needed", dials[1], dials[0],
                     4 * dials[0]);
}

// A story of two or three steps. `numbers` are small positive draws.
struct Story {
  std::string text;
  std::string expression;  // without spaces
  int64_t result = 0;
  std::vector<std::string> steps;
};

// The seven stories. Their values are drawn so that every amount is a whole number above zero.
Story make_story(int64_t max_value, RngSequence& random) {
  constexpr std::array<const char*, 12> kNames = {"Ada",  "Bela", "Chen", "Dora", "Emil", "Fatima",
                                                  "Gita", "Hugo", "Ines", "Jomo", "Kira", "Levi"};
  constexpr std::array<const char*, 10> kThings = {"apples", "books",   "coins", "stamps",
                                                   "shells", "marbles", "pears", "tickets",
                                                   "cards",  "eggs"};
  const char* name = kNames[random.below(kNames.size())];
  const char* thing = kThings[random.below(kThings.size())];
  const int64_t a = random.between(2, max_value), b = random.between(2, max_value);
  const int64_t c = random.between(2, max_value);
  switch (random.below(7)) {
    case 0:
      return {
          fmt::format("{} has {} {}, buys {} more and gives away {}. How many {} does {} have now?",
                      name, a + c, thing, b, c, thing, name),
          fmt::format("{}+{}-{}", a + c, b, c),
          a + b,
          {fmt::format("{} + {} = {}", a + c, b, a + b + c),
           fmt::format("{} - {} = {}", a + b + c, c, a + b)}};
    case 1:
      return {
          fmt::format("{} fills {} boxes with {} {} each and has {} left over. How many {} does {} "
                      "have in all?",
                      name, a, b, thing, c, thing, name),
          fmt::format("{}*{}+{}", a, b, c),
          a * b + c,
          {fmt::format("{} * {} = {}", a, b, a * b),
           fmt::format("{} + {} = {}", a * b, c, a * b + c)}};
    case 2:
      return {fmt::format("{} shares {} {} fairly among {} friends. How many does each friend get?",
                          name, a * b, thing, b),
              fmt::format("{}/{}", a * b, b),
              a,
              {fmt::format("{} / {} = {}", a * b, b, a)}};
    case 3:
      return {
          fmt::format("{} pays for {} {} at {} dollars each and for a bag at {} dollars. How many "
                      "dollars is that?",
                      name, a, thing, b, c),
          fmt::format("{}*{}+{}", a, b, c),
          a * b + c,
          {fmt::format("{} * {} = {}", a, b, a * b),
           fmt::format("{} + {} = {}", a * b, c, a * b + c)}};
    case 4:
      return {fmt::format(
                  "A train has {} cars with {} seats each; {} people are seated in it. How many "
                  "seats are free?",
                  a, b + c, a * b),
              fmt::format("{}*{}-{}", a, b + c, a * b),
              a * c,
              {fmt::format("{} * {} = {}", a, b + c, a * (b + c)),
               fmt::format("{} - {} = {}", a * (b + c), a * b, a * c)}};
    case 5:
      return {fmt::format("{} has {} {}. A friend has {} more than that. How many {} do they have "
                          "together?",
                          name, a, thing, b, thing),
              fmt::format("{}+{}+{}", a, a, b),
              2 * a + b,
              {fmt::format("{} + {} = {}", a, b, a + b),
               fmt::format("{} + {} = {}", a, a + b, 2 * a + b)}};
    default:
      return {
          fmt::format("{} reads {} pages a day from Monday to Friday and {} pages on Saturday. How "
                      "many pages is that?",
                      name, a, b),
          fmt::format("{}*5+{}", a, b),
          5 * a + b,
          {fmt::format("{} * 5 = {}", a, 5 * a), fmt::format("{} + {} = {}", 5 * a, b, 5 * a + b)}};
  }
}

std::optional<Problem> make_word_problem(std::span<const int64_t> dials, RngSequence& random) {
  const Story story = make_story(dials[0], random);
  Problem problem;
  problem.question = story.text;
  problem.compact = story.expression + "=";
  problem.answer = std::to_string(story.result);
  for (const std::string& step : story.steps) {
    add_line(problem.steps, step);
    std::string tight = step;
    std::erase(tight, ' ');
    add_part(problem.compact_steps, tight);
  }
  return problem;
}

}  // namespace

std::vector<Generator> arithmetic_generators() {
  return {
      {"chain_sum",
       "sums and differences of several numbers, from left to right",
       "math",
       "N",
       "number",
       "marker=Answer:",
       {{"terms", 3, 2, 20, "how many numbers"},
        {"digits", 1, 1, 9, "digits of each number"},
        {"allow_negative", 0, 0, 1, "1: results on the way may fall below zero"}},
       make_chain_sum},
      {"addition",
       "the sum of numbers with equally many digits",
       "math",
       "N",
       "number",
       "marker=Answer:",
       {{"digits", 2, 1, 15, "digits of each number"}, {"numbers", 2, 2, 9, "how many numbers"}},
       make_addition},
      {"multiplication",
       "the product of two numbers with equally many digits",
       "math",
       "N",
       "number",
       "marker=Answer:",
       {{"digits", 1, 1, 9, "digits of each number; one digit is 2 to 9"}},
       make_multiplication},
      {"gcd",
       "the greatest common divisor of two numbers",
       "math",
       "N",
       "number",
       "marker=Answer:",
       {{"max_gcd", 12, 2, 1000, "the divisor is uniform in 1..max_gcd"},
        {"max_factor", 12, 3, 1000, "each number is the divisor times a factor of at most this"}},
       make_gcd},
      {"base_conversion",
       "a decimal number written in another base",
       "math",
       "N",
       "exact",
       "marker=Answer: ignore_case=true",
       {{"base", 2, 2, 16, "base of the answer"},
        {"max_value", 255, 8, 1000000000, "numbers are uniform in base..max_value"}},
       make_base_conversion,
       base_conversion_contradiction},
      {"word_problem",
       "short stories with one or two steps of arithmetic",
       "math",
       "N",
       "number",
       "marker=Answer:",
       {{"max_value", 12, 4, 1000, "the numbers drawn are 2..max_value"}},
       make_word_problem},
  };
}

}  // namespace gradus::data
