// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/extract.h"

#include <algorithm>
#include <cstring>

#include "common/strings.h"
#include "rewards/math/candidates.h"
#include "rewards/math/parser.h"

namespace gradus::rewards::math {
namespace {

constexpr size_t kNone = std::string_view::npos;
constexpr size_t kMaxTailBytes = 64 * 1024;
constexpr size_t kMaxAttempts = 64;  // candidates tried per text
constexpr size_t kMaxPieceBytes = 4096;

std::string_view tail_of(std::string_view text) {
  if (text.size() > kMaxTailBytes) text.remove_prefix(text.size() - kMaxTailBytes);
  return text;
}

Expression percent_of(Expression value) { return make_node(Kind::kPercent, {std::move(value)}); }

// Digits as they stand in prose: 1,234.5 and 1 000 group thousands, 3,75 has a decimal comma.
Expression number_of(std::string_view text, std::string& shown) {
  const bool is_negative = text.starts_with('-');
  if (is_negative) text.remove_prefix(1);
  const size_t comma = text.find(',');
  const size_t behind_group = comma == kNone ? 0 : comma + 4;
  const bool is_grouped =
      text[0] != '0' && comma <= 3 && behind_group <= text.size() &&
      (behind_group == text.size() || text[behind_group] < '0' || text[behind_group] > '9');
  const bool has_decimal_comma = comma != kNone && !is_grouped;
  std::string digits;
  for (const char c : text) {
    if (c == ' ' || (c == ',' && !has_decimal_comma)) continue;
    digits += c == ',' ? '.' : c;
  }
  const size_t leading = std::min(digits.find_first_not_of('0'), digits.size());
  digits.erase(0, leading);
  if (digits.empty() || digits[0] == '.') digits.insert(digits.begin(), '0');
  shown = (is_negative ? "-" : "") + digits;
  Rational value = Rational::from_decimal(digits);
  return make_number(is_negative ? -value : value, digits.find('.') != std::string::npos);
}

// Members of lists flattened into one list.
Expression list_of(std::vector<Expression> parts) {
  if (parts.size() == 1) return parts[0];
  std::vector<Expression> members;
  for (const Expression& part : parts) {
    if (part->kind == Kind::kList || part->kind == Kind::kSet) {
      members.insert(members.end(), part->args.begin(), part->args.end());
    } else {
      members.push_back(part);
    }
  }
  return make_node(Kind::kList, std::move(members));
}

// A chain of equations that cannot be read counts by what follows its last equals sign.
std::string_view last_side(std::string_view text) {
  if (text.find(',') != kNone || text.find(';') != kNone) return text;
  size_t num_sides = 1, last = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_plain = text[i] == '=' && (i == 0 || (text[i - 1] != '\\' && text[i - 1] != '<' &&
                                                        text[i - 1] != '!' && text[i - 1] != '>'));
    if (!is_plain) continue;
    ++num_sides;
    last = i + 1;
  }
  return num_sides > 2 ? text.substr(last) : text;
}

class CompatReader {
 public:
  Extracted read(std::string_view text, Targets targets) {
    CandidateFinder finder(text, targets != Targets::kExpression, targets != Targets::kLatex);
    size_t num_attempts = 0;
    for (int group = 0; group < CandidateFinder::kNumGroups; ++group) {
      for (const Candidate& candidate : finder.group(group)) {
        result_.is_found = true;
        Expression value = value_of(candidate);
        if (value != nullptr) {
          result_.value = std::move(value);
          return std::move(result_);
        }
        if (++num_attempts >= kMaxAttempts) return std::move(result_);
      }
    }
    return std::move(result_);
  }

 private:
  // The first candidate's text is what two answers are compared by as texts.
  void note(std::string text) {
    if (result_.text.empty()) result_.text = std::move(text);
  }

  Expression value_of(const Candidate& candidate) {
    switch (candidate.type) {
      case Candidate::Type::kNumber: {
        std::string shown;
        Expression value = number_of(candidate.pieces[0].text, shown);
        note(shown);
        return candidate.pieces[0].has_percent ? percent_of(std::move(value)) : value;
      }
      case Candidate::Type::kArithmetic:
        note(std::string(candidate.pieces[0].text));
        return parse_arithmetic(candidate.pieces[0].text);
      case Candidate::Type::kLatex:
      case Candidate::Type::kBox:
        return latex_value_of(candidate);
    }
    return nullptr;
  }

  Expression latex_value_of(const Candidate& candidate) {
    std::vector<Expression> parts;
    std::vector<std::string> texts;
    for (const Candidate::Piece& piece : candidate.pieces) {
      // An answer cannot be that long; the group of boxes stands at the end.
      std::string_view text = piece.text;
      const size_t limit = candidate.type == Candidate::Type::kBox ? kMaxTailBytes : kMaxPieceBytes;
      if (text.size() > limit) text = text.substr(text.size() - limit);
      texts.push_back(normalise_compat(text, candidate.type == Candidate::Type::kBox));
      Expression part = parse_expression(texts.back(), {.is_compat = true});
      if (part == nullptr) {
        const std::string_view side = last_side(texts.back());
        if (side.size() != texts.back().size()) part = parse_expression(side, {.is_compat = true});
      }
      if (part != nullptr && piece.has_percent) part = percent_of(std::move(part));
      parts.push_back(std::move(part));
    }
    const bool are_all_read = std::find(parts.begin(), parts.end(), nullptr) == parts.end();
    note(parts.size() > 1 && are_all_read ? join(texts, " and ") : texts[0]);
    return are_all_read ? list_of(std::move(parts)) : parts[0];
  }

  Extracted result_;
};

}  // namespace

Extracted extract_compat(std::string_view text, Targets targets) {
  return CompatReader().read(tail_of(text), targets);
}

// ---- boxes ----

namespace {

bool has_separator(std::string_view between) {
  for (size_t i = 0; i < between.size(); ++i) {
    if (between[i] == ',' || between[i] == ';') return true;
    const auto is_letter_at = [&](size_t at) {
      return at < between.size() && ((between[at] >= 'a' && between[at] <= 'z') ||
                                     (between[at] >= 'A' && between[at] <= 'Z'));
    };
    for (const std::string_view word : {"and", "or"}) {
      const bool is_word = between.substr(i).starts_with(word) && !(i > 0 && is_letter_at(i - 1)) &&
                           !is_letter_at(i + word.size());
      if (is_word) return true;
    }
  }
  return false;
}

// The partner of the brace at `open`, before `limit`.
size_t closing_brace(std::string_view text, size_t open, size_t limit) {
  int64_t depth = 0;
  for (size_t i = open; i < limit; ++i) {
    depth += text[i] == '{' ? 1 : text[i] == '}' ? -1 : 0;
    if (depth == 0) return i;
  }
  return kNone;
}

}  // namespace

size_t last_command(std::string_view text, std::string_view command, size_t limit) {
  while (limit > 0) {
    const void* found = memrchr(text.data(), '\\', limit);
    if (found == nullptr) return kNone;
    limit = static_cast<size_t>(static_cast<const char*>(found) - text.data());
    if (text.substr(limit).starts_with(command)) return limit;
  }
  return kNone;
}

Boxes last_boxes(std::string_view text) {
  Boxes boxes;
  size_t limit = text.size(), next_begin = kNone;
  size_t scanned = 0;
  size_t boxed = text.size(), framed = text.size();
  while (limit > 0 && scanned < kMaxTailBytes && boxes.contents.size() < 64) {
    if (boxed != kNone && boxed >= limit) boxed = last_command(text, "\\boxed", limit);
    if (framed != kNone && framed >= limit) framed = last_command(text, "\\fbox", limit);
    if (boxed == kNone && framed == kNone) break;
    const size_t begin = boxed == kNone    ? framed
                         : framed == kNone ? boxed
                                           : std::max(boxed, framed);
    size_t open = begin + (begin == boxed ? 6 : 5);
    while (open < text.size() && text[open] == ' ') ++open;
    const bool is_open = open < text.size() && text[open] == '{';
    const size_t end_of_scan = next_begin == kNone ? text.size() : next_begin;
    scanned += end_of_scan - begin;
    const size_t close = is_open ? closing_brace(text, open, end_of_scan) : kNone;
    if (close == kNone) break;
    const std::string_view content = trim(text.substr(open + 1, close - open - 1));
    if (next_begin != kNone) {
      const std::string_view between = text.substr(close + 1, next_begin - close - 1);
      const bool joins = between.size() < 10 || (content != boxes.contents.front() &&
                                                 between.size() < 70 && has_separator(between));
      if (!joins) break;
    } else {
      boxes.end = close + 1;
    }
    if (boxes.contents.empty() || boxes.contents.front() != content) {
      boxes.contents.insert(boxes.contents.begin(), content);
    }
    next_begin = begin;
    limit = begin;
  }
  return boxes;
}

// ---- strict ----

namespace {

// What stands after the last </think>; sets a note where an answer cannot stand.
std::string_view after_thinking(std::string_view text, std::string& note) {
  const size_t close = text.rfind("</think>");
  if (close != kNone) {
    text = text.substr(close + 8);
    if (trim(text).empty()) note = "nothing after </think>";
    return text;
  }
  if (text.find("<think>") != kNone) {
    note = "<think> does not end";
    return {};
  }
  return text;
}

// A percent sign or word right behind a box, past its closing delimiters.
bool has_percent_behind(std::string_view text, size_t at) {
  std::string_view rest = text.substr(at);
  for (;;) {
    if (rest.starts_with("$") || rest.starts_with(" ")) {
      rest.remove_prefix(1);
    } else if (rest.starts_with("\\)") || rest.starts_with("\\]")) {
      rest.remove_prefix(2);
    } else {
      break;
    }
  }
  return rest.starts_with("%") || rest.starts_with("\\%") || rest.starts_with("percent") ||
         rest.starts_with("Percent");
}

// Words that cannot be read as an expression stand for themselves.
Expression read_strict(std::string_view text) {
  if (Expression value = parse_expression(text, {})) return value;
  return nullptr;
}

// Signs that the scanners of plain numbers know in ASCII.
std::string with_plain_signs(std::string_view text) {
  std::string plain;
  plain.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string_view rest = text.substr(i, 3);
    if (rest == "\u2212" || rest == "\uff0d") {
      plain += '-';
      i += 2;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

bool is_formula_word(std::string_view word) {
  for (const std::string_view known :
       {"sqrt",   "sin", "cos", "tan",  "cot",  "sec",      "csc",    "log",
        "ln",     "exp", "pi",  "sinh", "cosh", "tanh",     "arcsin", "arccos",
        "arctan", "gcd", "lcm", "max",  "min",  "infinity", "and",    "or"}) {
    if (word == known) return true;
  }
  return false;
}

// Words that are no function, outside commands.
size_t count_words(std::string_view text) {
  size_t num_words = 0, run = 0;
  bool is_command = false;
  int64_t depth_of_text = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    const char c = i < text.size() ? text[i] : ' ';
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (is_letter) {
      ++run;
      continue;
    }
    const bool is_word = run >= 2 && !is_command && depth_of_text == 0;
    num_words += is_word && !is_formula_word(text.substr(i - run, run)) ? 1 : 0;
    if (c == '{' && is_command) ++depth_of_text;
    if (c == '}' && depth_of_text > 0) --depth_of_text;
    run = 0;
    is_command = c == '\\';
  }
  return num_words;
}

// Digits with signs, points and commas: how commas are meant there is known to the scanners.
bool is_plain_number(std::string_view text) {
  return text.find_first_not_of("0123456789.,+-% $") == kNone;
}

bool is_one_word(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.';
  });
}

bool has_unescaped_dollar(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '$' && (i == 0 || text[i - 1] != '\\')) return true;
  }
  return false;
}

class StrictReader {
 public:
  Extracted read(std::string_view text) {
    text = after_thinking(text, result_.note);
    if (!result_.note.empty()) return std::move(result_);
    text = tail_of(text);
    if (read_boxes(text)) return std::move(result_);
    if (text.find("\\boxed") != kNone || text.find("\\fbox") != kNone) {
      result_.note = "a box without an end";
      return std::move(result_);
    }
    const bool has_sign = text.find("\u2212") != kNone || text.find("\uff0d") != kNone;
    const std::string plain = has_sign ? with_plain_signs(text) : std::string();
    read_candidates(has_sign ? std::string_view(plain) : text);
    if (!result_.is_found) result_.note = kNoAnswer;
    return std::move(result_);
  }

 private:
  bool read_boxes(std::string_view text) {
    const Boxes boxes = last_boxes(text);
    if (boxes.contents.empty()) return false;
    result_.is_found = true;
    std::vector<Expression> parts;
    for (const std::string_view content : boxes.contents) {
      result_.text +=
          (result_.text.empty() ? "" : ", ") + std::string(content.substr(0, kMaxPieceBytes));
      parts.push_back(content.size() > kMaxPieceBytes ? nullptr : read_strict(content));
    }
    if (std::find(parts.begin(), parts.end(), nullptr) != parts.end()) return true;
    result_.value = list_of(std::move(parts));
    if (has_percent_behind(text, boxes.end) && result_.value->kind == Kind::kNumber) {
      result_.value = percent_of(result_.value);
    }
    return true;
  }

  // A short text of one line without environments may be the answer and nothing else.
  bool read_whole(std::string_view text) {
    const bool is_short = text.size() < 200 && text.find('\n') == kNone;
    if (!is_short || has_unescaped_dollar(text) || text.find("\\(") != kNone ||
        text.find("\\[") != kNone || is_plain_number(text)) {
      return false;
    }
    if (count_words(text) > 0 && !is_one_word(text)) return false;
    Expression value = read_strict(text);
    if (value == nullptr) return false;
    result_ = {std::move(value), std::string(text), true, ""};
    return true;
  }

  void read_candidates(std::string_view text) {
    if (read_whole(trim(text))) return;
    CandidateFinder finder(text, true, true);
    size_t num_attempts = 0;
    for (int group = 0; group < CandidateFinder::kNumGroups; ++group) {
      size_t unread_begin = 0, unread_end = 0;
      for (const Candidate& candidate : finder.group(group)) {
        // A number inside a formula that cannot be read is not the answer.
        if (candidate.end > unread_begin && candidate.begin < unread_end) continue;
        if (is_denied(text, candidate)) continue;
        if (is_one_of_several(text, candidate)) {
          unread_begin = candidate.begin;
          unread_end = candidate.end;
          result_.is_found = true;
          continue;
        }
        Expression value = value_of(candidate);
        if (value != nullptr) value = with_alternatives(text, candidate, std::move(value));
        if (value == nullptr && candidate.type == Candidate::Type::kLatex) {
          unread_begin = candidate.begin;
          unread_end = candidate.end;
        }
        if (!result_.is_found || value != nullptr) {
          result_.text = std::string(candidate.pieces[0].text.substr(0, kMaxPieceBytes));
        }
        result_.is_found = true;
        if (value != nullptr) {
          result_.value = std::move(value);
          return;
        }
        if (++num_attempts >= kMaxAttempts) return;
      }
    }
  }

  // "not 8"
  static bool is_denied(std::string_view text, const Candidate& candidate) {
    const size_t begin = static_cast<size_t>(candidate.pieces[0].text.data() - text.data());
    const std::string_view before = trim(text.substr(0, begin));
    return before.ends_with(" not") || before.ends_with("n't");
  }

  // "-1.25 or \frac{1}{2}": a formula beside another answer is no answer. (Formulas side by side
  // are one candidate, a list.)
  static bool is_one_of_several(std::string_view text, const Candidate& candidate) {
    if (candidate.type != Candidate::Type::kLatex) return false;
    const auto is_in = [](char c, std::string_view set) { return set.find(c) != kNone; };
    const size_t begin = static_cast<size_t>(candidate.pieces[0].text.data() - text.data());
    std::string_view before = text.substr(0, begin);
    while (before.ends_with(' ') || before.ends_with('$')) before.remove_suffix(1);
    for (const std::string_view opening : {"\\(", "\\["}) {
      if (before.ends_with(opening)) before = trim(before.substr(0, before.size() - 2));
    }
    if (before.ends_with(" or") && before.size() > 3 &&
        is_in(before[before.size() - 4], "0123456789}$)")) {
      return true;
    }
    const std::string_view rest = text.substr(std::min(candidate.end, text.size()));
    return rest.starts_with(" or ") && rest.size() > 4 && is_in(rest[4], "0123456789-\\$(");
  }

  // "4 or 5" in plain notation is two answers.
  static Expression with_alternatives(std::string_view text, const Candidate& candidate,
                                      Expression value) {
    if (candidate.type != Candidate::Type::kNumber) return value;
    std::string_view rest = text.substr(candidate.end);
    std::vector<Expression> parts = {std::move(value)};
    while (rest.starts_with(" or ")) {
      rest.remove_prefix(4);
      const size_t length = std::min(rest.find_first_not_of("0123456789.,"), rest.size());
      std::string_view digits = rest.substr(0, length);
      while (!digits.empty() && (digits.back() == '.' || digits.back() == ',')) {
        digits.remove_suffix(1);
      }
      if (digits.empty()) break;
      std::string shown;
      parts.push_back(number_of(digits, shown));
      rest.remove_prefix(digits.size());
    }
    return list_of(std::move(parts));
  }

  Expression value_of(const Candidate& candidate) {
    if (candidate.type == Candidate::Type::kArithmetic) {
      return parse_arithmetic(candidate.pieces[0].text);
    }
    if (candidate.type == Candidate::Type::kNumber) {
      std::string shown;
      Expression value = number_of(candidate.pieces[0].text, shown);
      return candidate.pieces[0].has_percent ? percent_of(std::move(value)) : value;
    }
    std::vector<Expression> parts;
    for (const Candidate::Piece& piece : candidate.pieces) {
      if (piece.text.size() > kMaxPieceBytes) return nullptr;
      Expression part = read_strict(piece.text);
      if (part == nullptr) return nullptr;
      parts.push_back(piece.has_percent ? percent_of(std::move(part)) : std::move(part));
    }
    return list_of(std::move(parts));
  }

  Extracted result_;
};

}  // namespace

Extracted extract_strict(std::string_view text) { return StrictReader().read(text); }

Extracted extract_gold(std::string_view text) {
  const std::string_view whole = trim(text);
  const bool is_marked = whole.find("\\boxed") != kNone || whole.find("\\fbox") != kNone ||
                         whole.find("</think>") != kNone || whole.find("\\(") != kNone ||
                         whole.find("\\[") != kNone || has_unescaped_dollar(whole);
  if (!is_marked && whole.size() <= kMaxPieceBytes) {
    Expression value = count_words(whole) > 1 ? nullptr : read_strict(whole);
    if (value != nullptr) return {std::move(value), std::string(whole), true, ""};
  }
  return extract_strict(text);
}

}  // namespace gradus::rewards::math
