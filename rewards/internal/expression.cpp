// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/expression.h"

#include <limits>
#include <numeric>
#include <string>

namespace gradus::rewards {
namespace {

constexpr size_t kMaxBytes = 1000;
constexpr int kMaxDepth = 50;
constexpr int kMaxDigits = 15;

std::string with_ascii_signs(std::string_view text) {
  std::string result(text);
  for (const auto& [from, to] :
       {std::pair{"\xC3\x97", "*"}, std::pair{"\xC3\xB7", "/"}, std::pair{"\xE2\x88\x92", "-"}}) {
    const size_t length = std::string_view(from).size();
    for (size_t at = result.find(from); at != std::string::npos; at = result.find(from, at)) {
      result.replace(at, length, to);
    }
  }
  return result;
}

// Recursive descent; the first error stays.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<Expression> parse() {
    Expression expression;
    expression.value = sum(0);
    if (status_.ok() && next() != '\0') fail_at_next();
    if (!status_.ok()) return status_;
    expression.numbers = std::move(numbers_);
    return expression;
  }

 private:
  Fraction sum(int depth) {
    Fraction value = product(depth);
    while (status_.ok() && (next() == '+' || next() == '-')) {
      const bool is_minus = text_[at_++] == '-';
      const Fraction term = product(depth);
      const __int128 a = static_cast<__int128>(value.numerator) * term.denominator;
      const __int128 b = static_cast<__int128>(term.numerator) * value.denominator;
      value = make(is_minus ? a - b : a + b,
                   static_cast<__int128>(value.denominator) * term.denominator);
    }
    return value;
  }

  Fraction product(int depth) {
    Fraction value = atom(depth);
    while (status_.ok() && (next() == '*' || next() == '/')) {
      const bool is_division = text_[at_++] == '/';
      Fraction factor = atom(depth);
      if (is_division) std::swap(factor.numerator, factor.denominator);
      value = make(static_cast<__int128>(value.numerator) * factor.numerator,
                   static_cast<__int128>(value.denominator) * factor.denominator);
    }
    return value;
  }

  Fraction atom(int depth) {
    if (!status_.ok()) return {};
    if (next() == '(') {
      ++at_;
      if (depth == kMaxDepth) return fail(fmt::format("more than {} nested brackets", kMaxDepth));
      const Fraction value = sum(depth + 1);
      if (!status_.ok()) return {};
      if (next() != ')') return fail("a bracket is not closed");
      ++at_;
      return value;
    }
    int64_t number = 0;
    int num_digits = 0;
    for (next(); at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      if (++num_digits > kMaxDigits) return fail(fmt::format("more than {} digits", kMaxDigits));
      number = number * 10 + (text_[at_] - '0');
    }
    if (num_digits == 0) return fail_at_next();
    numbers_.push_back(number);
    return {number, 1};
  }

  Fraction make(__int128 numerator, __int128 denominator) {
    if (!status_.ok()) return {};
    if (denominator == 0) return fail("division by zero");
    __int128 a = numerator < 0 ? -numerator : numerator;
    __int128 b = denominator < 0 ? -denominator : denominator;
    while (b != 0) std::swap(a %= b, b);
    if (denominator < 0) a = -a;
    numerator /= a;
    denominator /= a;
    constexpr __int128 kLimit = std::numeric_limits<int64_t>::max();
    if (numerator > kLimit || numerator < -kLimit || denominator > kLimit) {
      return fail("a value beyond 64 bits");
    }
    return {static_cast<int64_t>(numerator), static_cast<int64_t>(denominator)};
  }

  // The next character that is no space, or 0 at the end.
  char next() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  Fraction fail(std::string message) {
    if (status_.ok()) status_ = {StatusCode::kInvalidArgument, std::move(message)};
    return {};
  }

  Fraction fail_at_next() {
    const char c = next();
    if (c == '\0') return fail("ends too early");
    const bool is_printable = c > ' ' && c <= '~';
    return fail(is_printable ? fmt::format("unexpected '{}' at byte {}", c, at_)
                             : fmt::format("unexpected character at byte {}", at_));
  }

  std::string_view text_;
  size_t at_ = 0;
  std::vector<int64_t> numbers_;
  Status status_;
};

}  // namespace

Result<Expression> evaluate(std::string_view text) {
  if (text.size() > kMaxBytes) return invalid_argument("longer than {} bytes", kMaxBytes);
  const std::string ascii = with_ascii_signs(text);
  return Parser(ascii).parse();
}

}  // namespace gradus::rewards
