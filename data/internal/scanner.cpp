// SPDX-License-Identifier: Apache-2.0
#include "data/internal/scanner.h"

#include <array>
#include <utility>

#include "data/internal/unicode.h"

namespace gradus::data::internal {
namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// A position in the text with the class of its code point; `length` 0 at the end of the text.
class Cursor {
 public:
  Cursor(std::string_view text, size_t position)
      : text_(text), properties_(PropertyTable::instance()), position_(position) {
    load();
  }
  size_t position() const { return position_; }
  bool at_end() const { return length_ == 0; }
  bool is(uint8_t properties) const { return (bits_ & properties) != 0; }
  bool is_newline() const {
    return length_ == 1 && (text_[position_] == '\n' || text_[position_] == '\r');
  }
  bool is_space_character() const { return length_ == 1 && text_[position_] == ' '; }
  void advance() {
    position_ += length_;
    load();
  }

 private:
  void load() {
    if (position_ >= text_.size()) {
      length_ = 0;
      bits_ = 0;
      return;
    }
    const auto [c, length] = decode_code_point(text_.data() + position_);
    length_ = length;
    bits_ = properties_[c];
  }

  std::string_view text_;
  const PropertyTable& properties_;
  size_t position_;
  uint32_t length_ = 0;
  uint8_t bits_ = 0;
};

// Length of the contraction that `text` starts with ('s 't 'm 'd 're 've 'll), or 0. U+017F folds
// to s.
size_t contraction_length(std::string_view text, bool ignore_case) {
  const auto letter = [&](size_t i) -> char {
    if (i >= text.size()) return 0;
    const char c = text[i];
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  switch (letter(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return 2;
    case 'r':
    case 'v':
      return letter(2) == 'e' ? 3 : 0;
    case 'l':
      return letter(2) == 'l' ? 3 : 0;
    default:
      return ignore_case && text.substr(1, 2) == "\xC5\xBF" ? 3 : 0;
  }
}

// The white space that starts at `begin`, when what follows it decides: all of it at the end of the
// text, else all but its last code point, which belongs to the next piece unless it is alone.
size_t scan_spaces(std::string_view text, size_t begin, bool stop_behind_newline) {
  Cursor cursor(text, begin);
  size_t last = begin;
  size_t newline_end = 0;
  while (cursor.is(kSpace)) {
    const bool is_newline = cursor.is_newline();
    last = cursor.position();
    cursor.advance();
    if (is_newline) newline_end = cursor.position();
  }
  if (stop_behind_newline && newline_end != 0) return newline_end;
  if (cursor.at_end() || last == begin) return cursor.position();
  return last;
}

size_t scan_gpt2(std::string_view text, size_t begin) {
  if (text[begin] == '\'') {
    if (const size_t length = contraction_length(text.substr(begin), false)) return begin + length;
  }
  Cursor cursor(text, begin);
  if (cursor.is_space_character()) {
    cursor.advance();
    if (cursor.at_end() || cursor.is(kSpace)) return scan_spaces(text, begin, false);
  } else if (cursor.is(kSpace)) {
    return scan_spaces(text, begin, false);
  }
  if (cursor.is(kLetter)) {
    do cursor.advance();
    while (cursor.is(kLetter));
  } else if (cursor.is(kNumber)) {
    do cursor.advance();
    while (cursor.is(kNumber));
  } else {
    do cursor.advance();
    while (!cursor.at_end() && !cursor.is(kLetter | kNumber | kSpace));
  }
  return cursor.position();
}

size_t scan_llama3(const ScannerRules& rules, std::string_view text, size_t begin) {
  if (text[begin] == '\'') {
    if (const size_t length = contraction_length(text.substr(begin), true)) return begin + length;
  }
  const uint8_t letter = rules.marks_are_letters ? kLetter | kMark : kLetter;
  Cursor cursor(text, begin);
  // [^\r\n\p{L}\p{N}]?\p{L}+ takes any one code point before letters, white space too.
  Cursor letters = cursor;
  if (!letters.is(letter | kNumber) && !letters.is_newline()) letters.advance();
  if (letters.is(letter)) {
    do letters.advance();
    while (letters.is(letter));
    return letters.position();
  }
  if (cursor.is(kNumber)) {
    int digits = 0;
    do cursor.advance();
    while (++digits < rules.max_digits && cursor.is(kNumber));
    return cursor.position();
  }
  if (cursor.is_space_character()) {
    cursor.advance();
    if (cursor.at_end() || cursor.is(kSpace | kNumber | letter))
      return scan_spaces(text, begin, true);
  } else if (cursor.is(kSpace)) {
    return scan_spaces(text, begin, true);
  }
  while (!cursor.at_end() && !cursor.is(letter | kNumber | kSpace)) cursor.advance();
  while (cursor.is_newline()) cursor.advance();
  return cursor.position();
}

}  // namespace

std::string scanner_pattern(const ScannerRules& rules) {
  if (rules.form == ScannerRules::Form::kGpt2) return std::string(kGpt2Pattern);
  const std::string letters = rules.marks_are_letters ? R"([\p{L}\p{M}]+)" : R"(\p{L}+)";
  const std::string others = rules.marks_are_letters ? R"(\p{L}\p{M})" : R"(\p{L})";
  const std::string digits =
      rules.max_digits == 1 ? R"(\p{N})" : R"(\p{N}{1,)" + std::to_string(rules.max_digits) + "}";
  return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?)" + letters + "|" + digits +
         R"(| ?[^\s)" + others + R"(\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
}

std::optional<ScannerRules> scanner_rules(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return ScannerRules{};
  for (int max_digits = 1; max_digits <= 3; ++max_digits) {
    for (const bool marks_are_letters : {false, true}) {
      const ScannerRules rules{ScannerRules::Form::kLlama3, max_digits, marks_are_letters};
      if (pattern == scanner_pattern(rules)) return rules;
    }
  }
  return std::nullopt;
}

size_t scan_piece(const ScannerRules& rules, std::string_view text, size_t begin) {
  return rules.form == ScannerRules::Form::kGpt2 ? scan_gpt2(text, begin)
                                                 : scan_llama3(rules, text, begin);
}

}  // namespace gradus::data::internal
