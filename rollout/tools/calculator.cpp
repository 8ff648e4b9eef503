// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "common/strings.h"
#include "rollout/tools/builtin.h"

// `calculator`: the value of an expression of numbers with + - * / % ^ and brackets, in doubles.
// ^ takes whole exponents, so that every step is one of IEEE 754 and the same on every machine.
namespace gradus::rollout {
namespace {

constexpr size_t kLongest = 1000;
constexpr int kDeepest = 100;

// Recursive descent; the first problem ends it.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<double> parse() {
    const double value = sum(0);
    skip_spaces();
    if (problem_.empty() && at_ < text_.size()) expected("an operator");
    if (!problem_.empty()) return invalid_argument("{}", problem_);
    return value;
  }

 private:
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) {
      ++at_;
    }
  }
  bool take(char c) {
    skip_spaces();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void fail(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
  }
  void expected(const char* what) {
    fail(at_ < text_.size() ? fmt::format("'{}' at {}; expected {}", excerpt_at(), at_ + 1, what)
                            : fmt::format("the expression ends at {}; expected {}", at_, what));
  }
  // A whole character, however many bytes it has.
  std::string_view excerpt_at() const {
    size_t end = at_ + 1;
    while (end < text_.size() && (text_[end] & 0xC0) == 0x80) ++end;
    return text_.substr(at_, end - at_);
  }

  double sum(int depth) {
    double value = product(depth);
    while (problem_.empty()) {
      if (take('+')) {
        value += product(depth);
      } else if (take('-')) {
        value -= product(depth);
      } else {
        break;
      }
    }
    return value;
  }
  double product(int depth) {
    double value = power(depth);
    while (problem_.empty()) {
      if (take('*')) {
        value *= power(depth);
      } else if (take('/')) {
        value /= divisor(depth);
      } else if (take('%')) {
        value = std::fmod(value, divisor(depth));
      } else {
        break;
      }
    }
    return value;
  }
  double divisor(int depth) {
    const double value = power(depth);
    if (value == 0) fail("division by zero");
    return value;
  }
  // The sign binds less than ^: -2^2 is -4.
  double power(int depth) {
    if (depth > kDeepest) {
      fail(fmt::format("more than {} brackets and signs in one another", kDeepest));
      return 0;
    }
    if (take('-')) return -power(depth + 1);
    if (take('+')) return power(depth + 1);
    const double base = primary(depth);
    if (!problem_.empty() || !take('^')) return base;
    const double exponent = power(depth + 1);
    if (!(std::fabs(exponent) <= 1024) || exponent != std::trunc(exponent)) {
      fail(fmt::format("the exponent is {}; expected a whole number of at most 1024", exponent));
      return 0;
    }
    if (base == 0 && exponent < 0) fail("division by zero");
    double value = 1;
    for (int i = 0; i < static_cast<int>(std::fabs(exponent)); ++i) value *= base;
    return exponent < 0 ? 1 / value : value;
  }
  double primary(int depth) {
    if (take('(')) {
      const double value = sum(depth + 1);
      if (problem_.empty() && !take(')')) expected("')'");
      return value;
    }
    skip_spaces();
    const size_t begin = at_;
    const auto digits = [&] {
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    };
    digits();
    if (at_ < text_.size() && text_[at_] == '.') {
      ++at_;
      digits();
    }
    const std::string number(text_.substr(begin, at_ - begin));
    if (number.empty() || number == ".") {
      at_ = begin;
      expected("a number or '('");
      return 0;
    }
    return std::strtod(number.c_str(), nullptr);
  }

  std::string_view text_;
  size_t at_ = 0;
  std::string problem_;
};

class Calculator : public Tool {
 public:
  ToolReply call(std::string_view text, double) const override {
    if (text.size() > kLongest) {
      return {data::ToolStatus::kInvalid,
              fmt::format("calculator: the expression has {} bytes; at most {} are read",
                          text.size(), kLongest)};
    }
    const Result<double> value = Parser(text).parse();
    if (!value.ok()) {
      return {data::ToolStatus::kInvalid, "calculator: " + value.status().message()};
    }
    if (!std::isfinite(*value)) {
      return {data::ToolStatus::kError, "calculator: the value is too large"};
    }
    // Whole numbers that doubles count without gaps are written out.
    const bool is_whole = *value == std::trunc(*value) && std::fabs(*value) < 9007199254740992.0;
    return {data::ToolStatus::kOk,
            is_whole ? fmt::format("{}", static_cast<int64_t>(*value)) : fmt::format("{}", *value)};
  }
};

}  // namespace

Result<std::unique_ptr<Tool>> make_calculator(const ToolConfig&) {
  return std::unique_ptr<Tool>(std::make_unique<Calculator>());
}

}  // namespace gradus::rollout
