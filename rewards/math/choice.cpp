// SPDX-License-Identifier: Apache-2.0
#include "common/strings.h"
#include "rewards/math/extract.h"

// Multiple choice: the one letter that a response settles on.
namespace gradus::rewards::math {
namespace {

constexpr size_t kMaxTailBytes = 64 * 1024;
constexpr size_t kMaxGapBytes = 40;  // between "answer" and its letter

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_choice(char c) { return c >= 'A' && c <= 'J'; }

char at(std::string_view text, size_t i) { return i < text.size() ? text[i] : ' '; }

// A choice stands alone: no letter or digit touches it.
bool stands_alone(std::string_view text, size_t i) {
  const char before = i == 0 ? ' ' : text[i - 1], after = at(text, i + 1);
  const auto touches = [](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '\'' || c == '_' || c == '\\';
  };
  return is_choice(text[i]) && !touches(before) && !touches(after);
}

// "B", "(B)", "**B.**", "B. 42", "(B) 42": the letter at the start, after brackets and stars.
char leading_letter(std::string_view text) {
  size_t i = 0;
  while (i < text.size() && (text[i] == '(' || text[i] == '*' || text[i] == ' ')) ++i;
  if (i >= text.size() || !stands_alone(text, i)) return 0;
  const std::string_view rest = trim(text.substr(i + 1));
  const bool is_marked = rest.starts_with('.') || rest.starts_with(')') || rest.starts_with(':') ||
                         rest.starts_with("**");
  return rest.empty() || is_marked ? text[i] : 0;
}

// Other choices on the line behind the letter: "A or B", "A, B", "A and C".
bool names_another(std::string_view text, size_t i) {
  const size_t end = std::min(std::min(text.find('\n', i), i + 24), text.size());
  for (size_t j = i + 1; j < end; ++j) {
    if (stands_alone(text, j) && text[j] != text[i] && text[j] != 'I') {
      return true;
    }
  }
  return false;
}

// The article A before a noun, the pronoun I.
bool is_plain_word(std::string_view text, size_t i) {
  if (text[i] == 'I') return true;
  const std::string_view rest = text.substr(i + 1);
  const bool joins = rest.starts_with(" or ") || rest.starts_with(" and ");
  return text[i] == 'A' && at(rest, 0) == ' ' && is_letter(at(rest, 1)) && !joins;
}

bool starts_with_word(std::string_view text, size_t i, std::string_view lower_word) {
  if (i + lower_word.size() > text.size()) return false;
  for (size_t j = 0; j < lower_word.size(); ++j) {
    const char c = text[i + j];
    if (c != lower_word[j] && c != lower_word[j] - 32) return false;
  }
  return true;
}

}  // namespace

char chosen_letter(std::string_view text) {
  if (text.size() > kMaxTailBytes) text.remove_prefix(text.size() - kMaxTailBytes);
  if (const Boxes boxes = last_boxes(text); !boxes.contents.empty()) {
    return boxes.contents.size() == 1 ? leading_letter(boxes.contents[0]) : 0;
  }
  text = trim(text);
  if (text.size() < 200 && text.find('\n') == std::string_view::npos) {
    if (const char letter = leading_letter(text))
      return names_another(text, text.find(letter)) ? 0 : letter;
  }
  char chosen = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    size_t next = 0;
    for (const std::string_view word : {"answer", "option", "choice"}) {
      if (starts_with_word(text, i, word)) next = i + word.size();
    }
    if (next == 0) continue;
    for (size_t j = next; j < std::min(next + kMaxGapBytes, text.size()) && text[j] != '\n'; ++j) {
      if (!stands_alone(text, j) || is_plain_word(text, j)) continue;
      const bool is_denied = trim(text.substr(0, j)).ends_with(" not");
      chosen = is_denied || names_another(text, j) ? 0 : text[j];
      break;
    }
  }
  return chosen;
}

}  // namespace gradus::rewards::math
