// SPDX-License-Identifier: Apache-2.0
#include "rewards/code/python_literal.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>

namespace gradus::rewards::code {
namespace {

using Kind = PythonValue::Kind;

constexpr size_t kMaxDigits = 4300;  // Python's own limit

bool is_digit(char c) { return c >= '0' && c <= '9'; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; }

int digit_value(char c) {
  if (is_digit(c)) return c - '0';
  const char small = lower(c);
  return small >= 'a' && small <= 'f' ? small - 'a' + 10 : 16;
}

PythonValue make_real(double value) {
  PythonValue out;
  out.kind = Kind::kFloat;
  out.real = value;
  return out;
}

// A line between two digits goes, or between 0x and a digit; anywhere else it is an error.
bool drop_lines(std::string_view token, bool has_base, std::string& out) {
  if (has_base && token.starts_with('_')) token.remove_prefix(1);
  for (size_t i = 0; i < token.size(); ++i) {
    if (token[i] != '_') {
      out += token[i];
    } else if (i == 0 || i + 1 == token.size() || digit_value(token[i - 1]) == 16 ||
               digit_value(token[i + 1]) == 16) {
      return false;
    }
  }
  return true;
}

// Decimal digits of a number in base 2, 8 or 16.
bool to_decimal(std::string_view digits, int base, std::string& out) {
  if (digits.empty() || digits.size() > kMaxDigits) return false;
  std::string reversed = "0";
  for (const char c : digits) {
    int carry = digit_value(c);
    if (carry >= base) return false;
    for (char& place : reversed) {
      carry += (place - '0') * base;
      place = static_cast<char>('0' + carry % 10);
      carry /= 10;
    }
    for (; carry > 0; carry /= 10) reversed += static_cast<char>('0' + carry % 10);
  }
  out.assign(reversed.rbegin(), reversed.rend());
  return true;
}

// digits[.digits][e[+-]digits], with digits on one side of the point at least.
bool is_decimal(std::string_view text, bool& is_whole) {
  size_t at = 0;
  const auto digits = [&] {
    const size_t begin = at;
    while (at < text.size() && is_digit(text[at])) ++at;
    return at - begin;
  };
  size_t num_digits = digits();
  is_whole = at == text.size();
  if (at < text.size() && text[at] == '.') {
    ++at;
    num_digits += digits();
  }
  if (num_digits == 0) return false;
  if (at < text.size() && text[at] == 'e') {
    ++at;
    if (at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
    if (digits() == 0) return false;
  }
  return at == text.size();
}

bool append_utf8(uint32_t code, std::string& out) {
  if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return false;
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
  return true;
}

// float('inf'), float(" -Infinity"), float("nan"), float('1e3').
bool parse_float(std::string text, double& value) {
  std::transform(text.begin(), text.end(), text.begin(), lower);
  const bool is_negative = text.starts_with('-');
  if (is_negative || text.starts_with('+')) text.erase(0, 1);
  bool is_whole = false;
  if (text == "inf" || text == "infinity") {
    value = std::numeric_limits<double>::infinity();
  } else if (text == "nan") {
    value = std::numeric_limits<double>::quiet_NaN();
  } else if (is_decimal(text, is_whole)) {
    value = std::strtod(text.c_str(), nullptr);
  } else {
    return false;
  }
  if (is_negative) value = -value;
  return true;
}

void negate(PythonValue& value) {
  value.real = -value.real;
  value.imaginary = -value.imaginary;
  if (value.kind == Kind::kInt && value.text != "0") value.text.insert(0, 1, '-');
}

}  // namespace

bool is_name_part(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_';
}

void LiteralReader::skip_space() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    const bool is_break = c == '\n' || c == '\r';
    if (c == ' ' || c == '\t' || (is_break && num_open_ > 0)) {
      ++at_;
    } else if (c == '#' && num_open_ > 0) {
      at_ = std::min(text_.find('\n', at_), text_.size());
    } else if (c == '\\' && text_.substr(at_ + 1, 1) == "\n") {
      at_ += 2;
    } else {
      return;
    }
  }
}

char LiteralReader::peek() {
  skip_space();
  return at_ < text_.size() ? text_[at_] : '\0';
}

bool LiteralReader::symbol(std::string_view s) {
  const size_t before = at_;
  skip_space();
  if (text_.substr(at_, s.size()) == s) return at_ += s.size(), true;
  at_ = before;
  return false;
}

bool LiteralReader::take(char c) { return symbol(std::string_view(&c, 1)); }

bool LiteralReader::word(std::string_view w) {
  const size_t before = at_;
  if (symbol(w) && (at_ >= text_.size() || !is_name_part(text_[at_]))) return true;
  at_ = before;
  return false;
}

std::string LiteralReader::name() {
  skip_space();
  const size_t begin = at_;
  while (at_ < text_.size() && (is_name_part(text_[at_]) || text_[at_] == '.')) ++at_;
  return std::string(text_.substr(begin, at_ - begin));
}

bool LiteralReader::open(char bracket) {
  if (!take(bracket)) return false;
  ++num_open_;
  return true;
}

bool LiteralReader::close(char bracket) {
  if (!take(bracket)) return false;
  --num_open_;
  return true;
}

bool LiteralReader::sequence(char open_bracket, char close_bracket, PythonValue& out, int depth,
                             bool* has_comma) {
  if (!open(open_bracket)) return false;
  out.kind = Kind::kList;
  while (!close(close_bracket)) {
    if (!value(out.items.emplace_back(), depth + 1)) return false;
    const bool comma = take(',');
    if (has_comma != nullptr) *has_comma |= comma;
    if (!comma) return close(close_bracket);
  }
  return true;
}

bool LiteralReader::parentheses(PythonValue& out, int depth) {
  bool has_comma = false;
  if (!sequence('(', ')', out, depth, &has_comma)) return false;
  out.kind = Kind::kTuple;
  if (!has_comma && !out.items.empty()) {
    PythonValue only = std::move(out.items.front());
    out = std::move(only);
  }
  return true;
}

// A dictionary if it is empty or its first element has a colon behind it, else a set.
bool LiteralReader::braces(PythonValue& out, int depth) {
  if (!open('{')) return false;
  out.kind = Kind::kDict;
  while (!close('}')) {
    const bool is_first = out.items.empty();
    if (!value(out.items.emplace_back(), depth + 1) || !is_hashable(out.items.back())) return false;
    const bool has_colon = take(':');
    if (is_first && !has_colon) out.kind = Kind::kSet;
    if (has_colon != (out.kind == Kind::kDict)) return false;
    if (has_colon && !value(out.items.emplace_back(), depth + 1)) return false;
    if (!take(',')) return close('}');
  }
  return true;
}

bool LiteralReader::called(PythonValue& out, int depth) {
  const std::string function = name();
  if (function == "math.inf" || function == "math.nan") {
    out.kind = Kind::kFloat;
    return parse_float(function.substr(5), out.real);
  }
  PythonValue arguments;
  if (!sequence('(', ')', arguments, depth) || arguments.items.size() > 1) return false;
  const bool is_empty = arguments.items.empty();
  PythonValue argument = is_empty ? PythonValue() : std::move(arguments.items.front());
  if (function == "float") {
    if (argument.kind != Kind::kText) return false;
    out.kind = Kind::kFloat;
    return parse_float(argument.text, out.real);
  }
  out.kind = function == "set"         ? Kind::kSet
             : function == "frozenset" ? Kind::kFrozenset
             : function == "tuple"     ? Kind::kTuple
             : function == "list"      ? Kind::kList
                                       : Kind::kDict;
  if (out.kind == Kind::kDict) return function == "dict" && is_empty;
  if (is_empty) return true;
  const bool is_ordered = argument.kind == Kind::kList || argument.kind == Kind::kTuple;
  const bool is_set = out.kind == Kind::kSet || out.kind == Kind::kFrozenset;
  if (!is_ordered && !(is_set && argument.kind == Kind::kSet)) return false;
  out.items = std::move(argument.items);
  return !is_set || std::all_of(out.items.begin(), out.items.end(), is_hashable);
}

bool LiteralReader::value(PythonValue& out, int depth) {
  if (depth > kMaxPythonDepth) return false;
  const char c = peek();
  if (c == '[') return sequence('[', ']', out, depth);
  if (c == '{') return braces(out, depth);
  if (c == '(') return parentheses(out, depth);
  if (starts_text()) return texts(out);
  out.kind = Kind::kBool;
  out.truth = c == 'T';
  if (word("True") || word("False")) return true;
  out.truth = false;
  out.kind = Kind::kNone;
  if (word("None")) return true;
  const bool is_named = (c >= 'a' && c <= 'z');
  return is_named ? called(out, depth) : number(out);
}

// A sign, and what literal_eval lets stand behind a number: plus or minus an imaginary one.
bool LiteralReader::number(PythonValue& out) {
  const bool is_negative = take('-');
  if (!is_negative) take('+');
  if (is_negative && lower(peek()) >= 'a' && peek() <= 'z') {  // -math.inf, -float('inf')
    if (!called(out, 0) || out.kind != Kind::kFloat) return false;
    negate(out);
    return true;
  }
  if (!unsigned_number(out)) return false;
  if (is_negative) negate(out);
  if (out.kind == Kind::kComplex) return true;
  const size_t before = at_;
  const bool is_minus = take('-');
  PythonValue imaginary;
  if ((is_minus || take('+')) && unsigned_number(imaginary) && imaginary.kind == Kind::kComplex) {
    out.real = out.kind == Kind::kInt ? std::strtod(out.text.c_str(), nullptr) : out.real;
    out.imaginary = is_minus ? -imaginary.imaginary : imaginary.imaginary;
    out.kind = Kind::kComplex;
    out.text.clear();
    return true;
  }
  at_ = before;
  return true;
}

bool LiteralReader::unsigned_number(PythonValue& out) {
  skip_space();
  const size_t begin = at_;
  const bool has_base = text_.substr(at_, 1) == "0" && at_ + 1 < text_.size() &&
                        std::string_view("xob").find(lower(text_[at_ + 1])) != std::string::npos;
  while (at_ < text_.size()) {
    const char c = text_[at_];
    const bool is_sign_of_exponent =
        (c == '-' || c == '+') && at_ > begin && !has_base && lower(text_[at_ - 1]) == 'e';
    if (!is_name_part(c) && c != '.' && !is_sign_of_exponent) break;
    ++at_;
  }
  std::string token;
  std::string_view raw = text_.substr(begin, at_ - begin);
  if (raw.empty() || raw.size() > 2 * kMaxDigits) return false;
  const int base = !has_base ? 10 : lower(raw[1]) == 'x' ? 16 : lower(raw[1]) == 'o' ? 8 : 2;
  if (has_base) raw.remove_prefix(2);
  if (!drop_lines(raw, has_base, token)) return false;
  std::transform(token.begin(), token.end(), token.begin(), lower);
  if (has_base) {
    out.kind = Kind::kInt;
    return to_decimal(token, base, out.text);
  }
  const bool is_imaginary = token.ends_with('j');
  if (is_imaginary) token.pop_back();
  bool is_whole = false;
  if (!is_decimal(token, is_whole)) return false;
  if (is_imaginary || !is_whole) {
    out = make_real(std::strtod(token.c_str(), nullptr));
    if (!is_imaginary) return true;
    out.kind = Kind::kComplex;
    std::swap(out.real, out.imaginary);
    return true;
  }
  if (token.size() > kMaxDigits) return false;
  const bool has_leading_zero = token.size() > 1 && token[0] == '0';
  if (has_leading_zero && token.find_first_not_of('0') != std::string::npos) return false;
  out.kind = Kind::kInt;
  out.text = has_leading_zero ? "0" : token;
  return true;
}

bool LiteralReader::starts_text() const {
  size_t at = at_;
  while (at < text_.size() && at < at_ + 2 &&
         std::string_view("rbu").find(lower(text_[at])) != std::string::npos) {
    ++at;
  }
  return at < text_.size() && (text_[at] == '"' || text_[at] == '\'');
}

// Texts side by side are one.
bool LiteralReader::texts(PythonValue& out) {
  for (bool is_first = true; is_first || (skip_space(), starts_text()); is_first = false) {
    bool is_bytes = false;
    if (!text_part(out, is_bytes)) return false;
    const Kind kind = is_bytes ? Kind::kBytes : Kind::kText;
    if (!is_first && out.kind != kind) return false;
    out.kind = kind;
  }
  return true;
}

bool LiteralReader::text_part(PythonValue& out, bool& is_bytes) {
  bool is_raw = false, has_u = false;
  for (; is_name_part(text_[at_]); ++at_) {
    const char prefix = lower(text_[at_]);
    bool& flag = prefix == 'r' ? is_raw : prefix == 'b' ? is_bytes : has_u;
    if (flag) return false;
    flag = true;
  }
  if (has_u && (is_raw || is_bytes)) return false;
  std::string quote(text_.substr(at_, 1));
  const bool is_long = text_.substr(at_, 3) == std::string(3, quote[0]);
  if (is_long) quote.assign(3, quote[0]);
  for (at_ += quote.size(); text_.substr(at_, quote.size()) != quote;) {
    if (at_ >= text_.size() || (!is_long && text_[at_] == '\n')) return false;
    const char c = text_[at_++];
    if (c == '\\' && !is_raw) {
      if (!escape(is_bytes, out.text)) return false;
      continue;
    }
    if (is_bytes && static_cast<unsigned char>(c) >= 0x80) return false;
    out.text += c;
    if (c != '\\') continue;
    if (at_ == text_.size()) return false;
    out.text += text_[at_++];  // a quote behind a backslash does not end a raw text
  }
  at_ += quote.size();
  return true;
}

// Behind the backslash.
bool LiteralReader::escape(bool is_bytes, std::string& content) {
  if (at_ >= text_.size()) return false;
  const char kind = text_[at_++];
  if (kind == '\n') return true;
  constexpr std::string_view kFrom = "ntr\\'\"abfv", kTo = "\n\t\r\\'\"\a\b\f\v";
  if (const size_t simple = kFrom.find(kind); simple != std::string_view::npos) {
    content += kTo[simple];
    return true;
  }
  uint32_t code = 0;
  if (kind >= '0' && kind < '8') {
    --at_;
    for (int i = 0; i < 3 && at_ < text_.size() && text_[at_] >= '0' && text_[at_] < '8'; ++i) {
      code = code * 8 + static_cast<uint32_t>(text_[at_++] - '0');
    }
  } else if (kind == 'x' || (!is_bytes && (kind == 'u' || kind == 'U'))) {
    for (int i = kind == 'x' ? 2 : kind == 'u' ? 4 : 8; i > 0; --i) {
      if (at_ >= text_.size() || digit_value(text_[at_]) == 16) return false;
      code = code * 16 + static_cast<uint32_t>(digit_value(text_[at_++]));
    }
  } else if (!is_bytes && kind == 'N') {
    return false;  // by its name in Unicode
  } else {
    content += '\\';  // Python leaves what is no escape as it is
    content += kind;
    return true;
  }
  if (!is_bytes) return append_utf8(code, content);
  if (code > 0xFF) return false;
  content += static_cast<char>(code);
  return true;
}

}  // namespace gradus::rewards::code
