// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/number.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace gradus::rewards {
namespace {

// More significant digits, or a larger exponent, are no answer to any task here; the limits bound
// the arithmetic below.
constexpr size_t kMaxDigits = 1000;
constexpr int64_t kMaxExponent = 1000;
constexpr size_t kMaxDenominatorDigits = 18;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

Decimal canonical(bool is_negative, std::string_view digits, int64_t exponent) {
  const size_t first = digits.find_first_not_of('0');
  if (first == std::string_view::npos) return {};
  const size_t last = digits.find_last_not_of('0');
  exponent += static_cast<int64_t>(digits.size() - 1 - last);
  return {is_negative, std::string(digits.substr(first, last + 1 - first)), exponent};
}

size_t digits_end(std::string_view text, size_t at) {
  while (at < text.size() && is_digit(text[at])) ++at;
  return at;
}

// Where the sign in front of text[at] begins and whether it is a minus; `at` itself if there is
// none.
std::pair<size_t, bool> sign_before(std::string_view text, size_t at) {
  size_t begin = at;
  bool is_minus = false;
  if (at >= 1 && (text[at - 1] == '-' || text[at - 1] == '+')) {
    begin = at - 1;
    is_minus = text[at - 1] == '-';
  } else if (at >= 3 && (text.substr(at - 3, 3) == "\xE2\x88\x92" ||
                         text.substr(at - 3, 3) == "\xE2\x80\x93")) {
    begin = at - 3;
    is_minus = true;
  }
  if (begin == at || begin == 0) return {begin, is_minus};
  const char before = text[begin - 1];
  const bool is_operation = is_digit(before) || is_letter(before) || before == ')' || before == ']';
  return is_operation ? std::pair{at, false} : std::pair{begin, is_minus};
}

// The end of digits with commas at thousands that start at `at`; plain digits otherwise.
size_t grouped_end(std::string_view text, size_t at) {
  size_t end = digits_end(text, at);
  if (end - at > 3) return end;
  while (end < text.size() && text[end] == ',' && digits_end(text, end + 1) == end + 4) end += 4;
  return end;
}

// Reads "e-12" at `at` into `exponent`, saturating; returns where it ends, `at` if there is none.
size_t read_exponent(std::string_view text, size_t at, int64_t& exponent) {
  if (at >= text.size() || (text[at] != 'e' && text[at] != 'E')) return at;
  size_t first = at + 1;
  const bool has_sign = first < text.size() && (text[first] == '+' || text[first] == '-');
  const bool is_minus = has_sign && text[first] == '-';
  first += has_sign ? 1 : 0;
  const size_t end = digits_end(text, first);
  if (end == first) return at;
  int64_t value = 0;
  for (size_t i = first; i < end; ++i)
    value = std::min<int64_t>(value * 10 + (text[i] - '0'), 1 << 30);
  exponent = is_minus ? -value : value;
  return end;
}

// Reads "/34" at `at`; returns where it ends, `at` if there is none. A denominator that cannot be
// used fills `problem`.
size_t read_denominator(std::string_view text, size_t at, FoundNumber& found) {
  if (at >= text.size() || text[at] != '/') return at;
  const size_t end = digits_end(text, at + 1);
  if (end == at + 1) return at;
  const Decimal value = canonical(false, text.substr(at + 1, end - at - 1), 0);
  if (value.digits.empty()) {
    found.problem = "division by zero";
  } else if (value.digits.size() + static_cast<size_t>(value.exponent) > kMaxDenominatorDigits) {
    found.problem = fmt::format("more than {} digits in a denominator", kMaxDenominatorDigits);
  } else {
    found.value.denominator = 0;
    for (const char digit : value.digits) {
      found.value.denominator = found.value.denominator * 10 + (digit - '0');
    }
    for (int64_t i = 0; i < value.exponent; ++i) found.value.denominator *= 10;
  }
  return end;
}

// The number whose first digit, or whose point before the first digit, stands at `at`.
FoundNumber read_number(std::string_view text, size_t at) {
  FoundNumber found;
  const auto [begin, is_minus] = sign_before(text, at);
  const size_t whole_end = grouped_end(text, at);
  std::string digits(text.substr(at, whole_end - at));
  std::erase(digits, ',');
  size_t end = whole_end;
  int64_t exponent = 0;
  if (end + 1 < text.size() && text[end] == '.' && is_digit(text[end + 1])) {
    const size_t fraction_end = digits_end(text, end + 1);
    digits += text.substr(end + 1, fraction_end - end - 1);
    exponent = -static_cast<int64_t>(fraction_end - end - 1);
    end = fraction_end;
  }
  int64_t written_exponent = 0;
  end = read_exponent(text, end, written_exponent);
  found.value.numerator = canonical(is_minus, digits, exponent + written_exponent);
  end = read_denominator(text, end, found);
  if (end < text.size() && text[end] == '%') {
    found.has_percent = true;
    ++end;
  }
  const Decimal& value = found.value.numerator;
  if (value.digits.size() > kMaxDigits) {
    found.problem = fmt::format("more than {} digits", kMaxDigits);
  } else if (value.exponent > kMaxExponent || value.exponent < -kMaxExponent) {
    found.problem = fmt::format("an exponent beyond {}", kMaxExponent);
  }
  if (!found.problem.empty()) found.value = {};
  found.begin = begin;
  found.end = end;
  return found;
}

// Whether a number's digits start at `at`, which is not within a number before it.
bool starts_number(std::string_view text, size_t at) {
  if (is_digit(text[at])) return true;
  const bool is_point = text[at] == '.' && at + 1 < text.size() && is_digit(text[at + 1]);
  return is_point && (at == 0 || !(is_digit(text[at - 1]) || is_letter(text[at - 1])));
}

Decimal multiply(const Decimal& value, uint64_t factor) {
  std::string digits(value.digits.size() + 20, '0');  // 2^64 has 20 digits
  unsigned __int128 carry = 0;
  size_t out = digits.size();
  for (size_t i = value.digits.size(); i-- > 0;) {
    carry += static_cast<unsigned __int128>(factor) * static_cast<unsigned>(value.digits[i] - '0');
    digits[--out] = static_cast<char>('0' + static_cast<int>(carry % 10));
    carry /= 10;
  }
  for (; carry > 0; carry /= 10)
    digits[--out] = static_cast<char>('0' + static_cast<int>(carry % 10));
  return canonical(value.is_negative, digits, value.exponent);
}

// The digits as a whole number of units of 10^exponent, padded in front to `width`.
std::string aligned(const Decimal& value, int64_t exponent, size_t width) {
  std::string digits = value.digits;
  if (!digits.empty()) digits.append(static_cast<size_t>(value.exponent - exponent), '0');
  return std::string(width - digits.size(), '0') + digits;
}

size_t width_at(const Decimal& value, int64_t exponent) {
  return value.digits.empty()
             ? 0
             : value.digits.size() + static_cast<size_t>(value.exponent - exponent);
}

// The smaller exponent of the two, that of a zero left aside.
int64_t common_exponent(const Decimal& a, const Decimal& b) {
  if (a.digits.empty()) return b.exponent;
  if (b.digits.empty()) return a.exponent;
  return std::min(a.exponent, b.exponent);
}

// |a - b|.
Decimal distance(const Decimal& a, const Decimal& b) {
  const int64_t exponent = common_exponent(a, b);
  const size_t width = std::max(width_at(a, exponent), width_at(b, exponent)) + 1;
  std::string x = aligned(a, exponent, width), y = aligned(b, exponent, width);
  if (a.is_negative != b.is_negative) {
    int carry = 0;
    for (size_t i = width; i-- > 0;) {
      const int sum = (x[i] - '0') + (y[i] - '0') + carry;
      x[i] = static_cast<char>('0' + sum % 10);
      carry = sum / 10;
    }
    return canonical(false, x, exponent);
  }
  if (x < y) std::swap(x, y);
  int borrow = 0;
  for (size_t i = width; i-- > 0;) {
    int difference = x[i] - y[i] - borrow;
    borrow = difference < 0 ? 1 : 0;
    x[i] = static_cast<char>('0' + difference + 10 * borrow);
  }
  return canonical(false, x, exponent);
}

// a <= b, neither negative.
bool at_most(const Decimal& a, const Decimal& b) {
  const int64_t exponent = common_exponent(a, b);
  const size_t width = std::max(width_at(a, exponent), width_at(b, exponent));
  return aligned(a, exponent, width) <= aligned(b, exponent, width);
}

std::string decimal_text(const Decimal& value) {
  constexpr int64_t kMaxZeros = 20;
  if (value.digits.empty()) return "0";
  const std::string sign = value.is_negative ? "-" : "";
  const int64_t num_digits = static_cast<int64_t>(value.digits.size());
  const int64_t point = num_digits + value.exponent;  // digits before the point
  if (value.exponent >= 0 && value.exponent <= kMaxZeros) {
    return sign + value.digits + std::string(static_cast<size_t>(value.exponent), '0');
  }
  if (value.exponent < 0 && point > 0) {
    return sign + value.digits.substr(0, static_cast<size_t>(point)) + "." +
           value.digits.substr(static_cast<size_t>(point));
  }
  if (value.exponent < 0 && point > -kMaxZeros) {
    return sign + "0." + std::string(static_cast<size_t>(-point), '0') + value.digits;
  }
  return fmt::format("{}{}e{:+}", sign, value.digits, value.exponent);
}

// The remainder of a whole number 10^exponent * digits by `divisor`, exponent >= 0.
int64_t remainder(const Decimal& value, int64_t divisor) {
  __int128 rest = 0;
  for (const char digit : value.digits) rest = (rest * 10 + (digit - '0')) % divisor;
  for (int64_t i = 0; i < value.exponent; ++i) rest = rest * 10 % divisor;
  return static_cast<int64_t>(rest);
}

// The exact quotient of a whole number by a divisor of it.
Decimal divide(const Decimal& value, int64_t divisor) {
  std::string quotient;
  __int128 rest = 0;
  std::string digits = value.digits;
  digits.append(static_cast<size_t>(value.exponent), '0');
  for (const char digit : digits) {
    rest = rest * 10 + (digit - '0');
    quotient += static_cast<char>('0' + static_cast<int>(rest / divisor));
    rest %= divisor;
  }
  return canonical(value.is_negative, quotient, 0);
}

}  // namespace

std::optional<FoundNumber> find_number(std::string_view text, size_t from) {
  for (size_t at = from; at < text.size(); ++at) {
    if (starts_number(text, at)) return read_number(text, at);
  }
  return std::nullopt;
}

std::optional<FoundNumber> last_number(std::string_view text) {
  std::optional<FoundNumber> last;
  size_t from = 0;
  while (auto found = find_number(text, from)) {
    from = found->end;
    last = std::move(found);
  }
  return last;
}

std::string canonical_text(const Number& number) {
  Decimal numerator = number.numerator;
  int64_t denominator = number.denominator;
  if (denominator == 1) return decimal_text(numerator);
  // Powers of 2 and 5 of the denominator turn into digits: x / 2 = x * 5 / 10.
  while (denominator % 10 == 0) {
    denominator /= 10;
    if (!numerator.digits.empty()) --numerator.exponent;
  }
  for (const auto& [factor, other] : {std::pair{2, 5}, std::pair{5, 2}}) {
    while (denominator % factor == 0) {
      denominator /= factor;
      numerator = multiply(numerator, static_cast<uint64_t>(other));
      if (!numerator.digits.empty()) --numerator.exponent;
    }
  }
  // What is left shares no factor with 10, so the numerator's power of 10 does not matter to their
  // greatest common divisor.
  Decimal digits = numerator;
  digits.exponent = 0;
  const int64_t divisor = std::gcd(remainder(digits, denominator), denominator);
  denominator /= divisor;
  Decimal reduced = divide(digits, divisor);
  if (!reduced.digits.empty()) reduced.exponent += numerator.exponent;
  return denominator == 1 ? decimal_text(reduced)
                          : fmt::format("{}/{}", decimal_text(reduced), denominator);
}

bool is_within(const Number& a, const Number& b, const Decimal& tolerance) {
  // |p/q - r/s| <= t  <=>  |p s - r q| <= t q s
  const auto q = static_cast<uint64_t>(a.denominator), s = static_cast<uint64_t>(b.denominator);
  return at_most(distance(multiply(a.numerator, s), multiply(b.numerator, q)),
                 multiply(multiply(tolerance, q), s));
}

}  // namespace gradus::rewards
