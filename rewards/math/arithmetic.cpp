// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/parser.h"

namespace gradus::rewards::math {
namespace {

constexpr size_t kMaxBytes = 4096;
constexpr int kMaxDepth = 200;

// Thrown and caught inside this file: the text is no expression.
struct Unreadable {};

// Digits, operators and brackets, in the precedence of programming languages.
class ArithmeticParser {
 public:
  explicit ArithmeticParser(std::string_view text) : text_(text) {}

  Expression run() {
    try {
      Expression result = parse_sum();
      skip_spaces();
      return at_ == text_.size() ? result : nullptr;
    } catch (const Unreadable&) {
      return nullptr;
    }
  }

 private:
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t'))
      ++at_;
  }
  bool take(char c) {
    skip_spaces();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  Expression parse_sum() {
    if (++depth_ > kMaxDepth) throw Unreadable();
    Expression left = parse_product();
    for (;;) {
      if (take('+')) {
        left = sum_of(std::move(left), parse_product());
      } else if (take('-')) {
        left = difference_of(left, parse_product());
      } else {
        --depth_;
        return left;
      }
    }
  }
  Expression parse_product() {
    Expression left = parse_unary();
    for (;;) {
      if (take_power()) throw Unreadable();
      if (take('*')) {
        left = product_of(std::move(left), parse_unary());
      } else if (take('/')) {
        left = quotient_of(left, parse_unary());
      } else {
        return left;
      }
    }
  }
  bool take_power() {
    skip_spaces();
    if (text_.substr(at_).starts_with("**")) {
      at_ += 2;
      return true;
    }
    return take('^');
  }
  Expression parse_unary() {
    if (++depth_ > kMaxDepth) throw Unreadable();
    Expression result;
    if (take('-')) {
      result = negated(parse_unary());
    } else if (take('+')) {
      result = parse_unary();
    } else {
      result = parse_atom();
      if (take_power()) result = make_node(Kind::kPower, {result, parse_unary()});
    }
    --depth_;
    return result;
  }
  Expression parse_atom() {
    if (take('(')) {
      Expression inside = parse_sum();
      if (!take(')')) throw Unreadable();
      return inside;
    }
    skip_spaces();
    const size_t begin = at_;
    bool has_point = false;
    while (at_ < text_.size() &&
           ((text_[at_] >= '0' && text_[at_] <= '9') || (text_[at_] == '.' && !has_point))) {
      has_point |= text_[at_] == '.';
      ++at_;
    }
    const std::string_view digits = text_.substr(begin, at_ - begin);
    if (digits.empty() || digits == ".") throw Unreadable();
    // A leading zero is no number in a programming language.
    if (!has_point && digits.size() > 1 && digits[0] == '0') throw Unreadable();
    return make_number(Rational::from_decimal(digits), has_point);
  }

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Expression parse_arithmetic(std::string_view text) {
  if (text.size() > kMaxBytes) return nullptr;
  return ArithmeticParser(text).run();
}

}  // namespace gradus::rewards::math
