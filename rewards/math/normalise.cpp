// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <string>

#include "common/strings.h"
#include "rewards/math/extract.h"

// The cleaning of a LaTeX answer before Math-Verify 0.9.0 parses it, as far as a verdict can depend
// on it: what the parser of ours reads by itself (\left, \dfrac, \frac12) is left to it.
namespace gradus::rewards::math {
namespace {

constexpr size_t kNone = std::string::npos;
constexpr size_t kMaxBoxes = 64;
constexpr size_t kMaxBytes = 4096;  // longer texts are not parsed, so they are left as they are

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// Words that are cut off behind a number, a brace or a space at the end; each also with s or es.
constexpr std::array<std::string_view, 98> kUnits = {
    "a .",   "ab",     "acre",     "am",     "apple",   "are",   "bc",       "by",     "c",
    "cc",    "cent",   "cm",       "coin",   "cube",    "cubic", "d",        "day",    "decrease",
    "deg",   "degree", "digit",    "dm",     "east",    "edge",  "excess",   "feet",   "ft",
    "g",     "gain",   "gal",      "gallon", "gm",      "h",     "hectare",  "hour",   "hr",
    "inch",  "inches", "increase", "kg",     "km",      "kmh",   "kmph",     "l",      "lb",
    "less",  "liter",  "litre",    "loss",   "lt",      "m",     "m square", "man",    "mark",
    "meal",  "men",    "meter",    "metre",  "mile",    "min",   "minute",   "mm",     "monkey",
    "month", "more",   "mp",       "mph",    "mt",      "mtr",   "multiple", "noon",   "number",
    "o",     "ohm",    "per",      "pie",    "pm",      "pound", "prime",    "profit", "ratio",
    "rd",    "rise",   "rounds",   "rs",     "rupee",   "s",     "sec",      "second", "soldier",
    "sq",    "sq m",   "square",   "st",     "student", "t",     "th",       "tile"};
constexpr std::array<std::string_view, 13> kMoreUnits = {
    "toy",  "unit", "way",  "west",    "woman", "women",    "yard",
    "year", "yr",   "pure", "sq inch", "cu cm", "no change"};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (text.find(from) == kNone) return;
  std::string result;
  size_t at = 0;
  for (size_t found = text.find(from); found != kNone; found = text.find(from, at)) {
    result.append(text, at, found - at);
    result += to;
    at = found + from.size();
  }
  result.append(text, at, kNone);
  text = std::move(result);
}

// ---- boxes ----

// All boxes of a text in order, joined by commas; the text itself when there is none.
std::string all_boxes(std::string_view text) {
  std::vector<std::string> contents;
  size_t limit = text.size();
  size_t boxed = text.size(), framed = text.size();
  while (limit > 0 && contents.size() < kMaxBoxes) {
    if (boxed != kNone && boxed >= limit) boxed = last_command(text, "\\boxed", limit);
    if (framed != kNone && framed >= limit) framed = last_command(text, "\\fbox", limit);
    if (boxed == kNone && framed == kNone) break;
    const size_t begin = boxed == kNone    ? framed
                         : framed == kNone ? boxed
                                           : std::max(boxed, framed);
    size_t open = begin + (begin == boxed ? 6 : 5);
    while (open < limit && is_space(text[open])) ++open;
    if (open >= limit || text[open] != '{') {
      if (contents.empty() && open < limit) contents.emplace_back(text.substr(open));
      break;
    }
    int64_t depth = 0;
    size_t close = kNone;
    for (size_t i = open; i < limit && close == kNone; ++i) {
      depth += text[i] == '{' ? 1 : text[i] == '}' ? -1 : 0;
      if (depth == 0) close = i;
    }
    if (close == kNone) {
      if (contents.empty()) contents.emplace_back(text.substr(open));
      break;
    }
    std::string content(trim(text.substr(open + 1, close - open - 1)));
    if (contents.empty() || contents.back() != content) contents.push_back(std::move(content));
    limit = begin;
  }
  if (contents.empty()) return std::string(text);
  std::reverse(contents.begin(), contents.end());
  return join(contents, ",");
}

std::string opened_boxes(std::string_view text, bool only_last) {
  if (text.find("\\boxed") == kNone && text.find("\\fbox") == kNone) return std::string(text);
  if (!only_last) return all_boxes(text);
  const Boxes boxes = last_boxes(text);
  if (boxes.contents.empty()) return all_boxes(text);
  std::vector<std::string> contents(boxes.contents.begin(), boxes.contents.end());
  return join(contents, ",");
}

// ---- words and commands ----

// Copies a text from left to right, putting others in the place of what it knows.
class Rewriter {
 public:
  explicit Rewriter(std::string_view text) : text_(text) {}

  std::string run() {
    while (at_ < text_.size()) {
      if (!rewrite()) out_ += text_[at_++];
    }
    return std::move(out_);
  }

 private:
  bool starts(std::string_view word) const { return text_.substr(at_).starts_with(word); }
  bool put(std::string_view word, size_t length) {
    out_ += word;
    at_ += length;
    return true;
  }
  size_t spaces_from(size_t at) const {
    while (at < text_.size() && is_space(text_[at])) ++at;
    return at - at_;
  }

  bool rewrite() {
    const char c = text_[at_];
    if (c == '\\') return rewrite_command();
    if (c == '$') return put("", 1);
    if ((c == '"' || c == '\'') && !(at_ > 0 && text_[at_ - 1] == '\\')) return put("", 1);
    if (c == '{' && starts("{.")) return put("{0.", 2);
    if (c == '~' && starts("~=")) return put("\\approx", 2);
    if (c == ',' || is_space(c) || is_letter(c) || c == '{') return rewrite_word();
    return false;
  }

  bool rewrite_command() {
    for (const std::string_view command : {"\\mathrm{T}", "\\mathrm{d}"}) {
      if (starts(command)) return put(command.substr(8, 1), command.size());
    }
    if (starts("\\mathrm{th}")) return put("", 11);
    if (starts("\\displaystyle")) return put("", 13);
    if (starts("\\!")) return put("", spaces_from(at_ + 2));
    if (starts("\\$")) return put("", 2);
    for (const std::string_view command :
         {"\\mathrm", "\\mathit", "\\mathbf", "\\textnormal", "\\textbf", "\\textit", "\\textrm"}) {
      if (starts(command)) return rewrite_text(command.size());
    }
    if (starts("\\text")) return rewrite_text(5);
    for (const std::string_view command : {"\\dfrac", "\\tfrac", "\\cfrac"}) {
      if (starts(command)) return put("\\frac", 6);
    }
    if (starts("\\ldots")) return put(" ", 6);
    for (const std::string_view command : {"\\left", "\\right"}) {
      const size_t next = at_ + command.size();
      const bool is_sizing = starts(command) && next < text_.size() && !is_letter(text_[next]);
      if (is_sizing && text_[next] != '.') return put("", command.size());
    }
    if (at_ + 1 < text_.size() && is_space(text_[at_ + 1]) &&
        !(at_ > 0 && text_[at_ - 1] == '\\')) {
      return put(" ", 2);
    }
    if (starts("\\inf")) return put("\\inf", 4);
    return false;
  }

  // \text{} is nothing, \text{and} a comma, \text{percent} a sign.
  bool rewrite_text(size_t length) {
    const size_t open = at_ + length;
    const size_t begin = at_ + spaces_from(open);
    if (begin >= text_.size() || text_[begin] != '{') return put("\\text", length);
    const size_t close = text_.find('}', begin);
    if (close == kNone) return put("\\text", length);
    const std::string_view word = trim(text_.substr(begin + 1, close - begin - 1));
    if (word.empty()) return put("", close + 1 - at_);
    if (word == "and" || word == "or") {
      while (!out_.empty() && is_space(out_.back())) out_.pop_back();
      if (!out_.empty() && out_.back() == ',') out_.pop_back();
      return put(",", close + 1 - at_);
    }
    if (word == "percentage" || word == "percent" || word == "pct")
      return put("%", close + 1 - at_);
    return put("\\text", length);
  }

  bool is_word_at(size_t at, std::string_view word) const {
    return text_.substr(std::min(at, text_.size())).starts_with(word);
  }
  bool ends_word(size_t at) const { return at >= text_.size() || !is_letter(text_[at]); }

  bool rewrite_word() {
    const bool is_behind_letter = at_ > 0 && is_letter(text_[at_ - 1]);
    const size_t comma = text_[at_] == ',' ? 1 : 0;
    const size_t spaces = spaces_from(at_ + comma);
    const size_t word = at_ + spaces;
    if (!is_behind_letter) {
      for (const std::string_view joint : {"and", "or"}) {
        if (is_word_at(word, joint) && ends_word(word + joint.size())) {
          return put(",", spaces + joint.size());
        }
      }
    }
    // \s*{\s*,\s*} groups thousands.
    if (comma == 0 && word < text_.size() && text_[word] == '{') {
      size_t i = word + 1;
      while (i < text_.size() && is_space(text_[i])) ++i;
      if (i < text_.size() && text_[i] == ',') {
        ++i;
        while (i < text_.size() && is_space(text_[i])) ++i;
        if (i < text_.size() && text_[i] == '}') return put(",", i + 1 - at_);
      }
    }
    const bool is_word_start =
        word > at_ || at_ == 0 || (!is_letter(text_[at_ - 1]) && !is_digit(text_[at_ - 1]));
    for (const std::string_view percent : {"percentage", "percent", "pct"}) {
      if (comma == 0 && is_word_start && is_word_at(word, percent) &&
          ends_word(word + percent.size())) {
        return put("\\%", spaces + percent.size());
      }
    }
    if (comma == 1 && is_word_at(at_ + 1, "\\ldots")) return put(" ", 7);
    if (is_space(text_[at_])) {
      if (is_word_at(at_ + 1, ".")) return put(" 0.", 2);
      if (is_word_at(at_ + 1, "sqrt")) return put("\\sqrt", 5);
    }
    if (starts("infinity")) return put("\\infty", 8);
    if (starts("inf")) return put("\\infty", 3);
    return false;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::string out_;
};

// ---- units ----

void cut_text_at_end(std::string& text) {
  std::string_view rest = text;
  if (rest.size() > 2 && is_digit(rest.back()) && rest[rest.size() - 2] == '^') {
    rest.remove_suffix(2);
  } else if (rest.size() > 4 && rest.ends_with('}') && is_digit(rest[rest.size() - 2]) &&
             rest[rest.size() - 3] == '^' && rest[rest.size() - 4] == '{') {
    rest.remove_suffix(4);
  }
  if (!rest.ends_with('}')) return;
  const size_t first = std::min(rest.find("\\text{"), rest.find("\\mbox{"));
  if (first == kNone) return;
  const std::string_view kept = trim(rest.substr(0, first));
  if (!kept.empty()) text = std::string(kept);
}

// Where the longest unit at the end begins; the size of the text when there is none.
size_t unit_begin(std::string_view text) {
  const std::string_view trimmed = [&] {
    std::string_view rest = text;
    while (!rest.empty() && is_space(rest.back())) rest.remove_suffix(1);
    return rest;
  }();
  size_t begin = text.size();
  const auto try_unit = [&](std::string_view unit) {
    for (const std::string_view plural : {"", "s", "es"}) {
      std::string_view rest = trimmed;
      if (!rest.ends_with(plural)) continue;
      rest.remove_suffix(plural.size());
      if (!rest.ends_with(unit)) continue;
      rest.remove_suffix(unit.size());
      const bool has_space = !rest.empty() && is_space(rest.back());
      if (has_space || rest.ends_with('}') || (!rest.empty() && is_digit(rest.back()))) {
        while (rest.size() > 1 && is_space(rest.back()) && is_space(rest[rest.size() - 2])) {
          rest.remove_suffix(1);
        }
        begin = std::min(begin, rest.size());
      }
    }
  };
  for (const std::string_view unit : kUnits) try_unit(unit);
  for (const std::string_view unit : kMoreUnits) try_unit(unit);
  return begin;
}

void cut_units(std::string& text) {
  cut_text_at_end(text);
  for (int i = 0; i < 2; ++i) {
    const size_t begin = unit_begin(text);
    if (begin < text.size() && begin > 0) text.resize(begin);
  }
}

// ---- malformed operators ----

// `from`, then at most one space, then ( ... ): braces in their place, after `to`.
void replace_call(std::string& text, std::string_view from, std::string_view to) {
  std::string result;
  size_t at = 0;
  for (size_t found = text.find(from); found != kNone; found = text.find(from, at)) {
    size_t open = found + from.size();
    if (open < text.size() && text[open] == ' ') ++open;
    const size_t close = open < text.size() && text[open] == '(' ? text.find(')', open) : kNone;
    if (close == kNone) {
      result.append(text, at, found + from.size() - at);
      at = found + from.size();
      continue;
    }
    result.append(text, at, found - at);
    result += std::string(to) + "{" + text.substr(open + 1, close - open - 1) + "}";
    at = close + 1;
  }
  result.append(text, at, kNone);
  text = std::move(result);
}

// \log_28 has the base 2.
void split_log_base(std::string& text) {
  size_t at = 0;
  while ((at = text.find("\\log_", at)) != kNone) {
    at += 5;
    if (at + 1 < text.size() && is_digit(text[at]) && is_digit(text[at + 1])) {
      text.insert(at + 1, "}");
      text.insert(at, "{");
    }
  }
}

// \frac12 is \frac{1}{2}, \sqrt3 is \sqrt{3}: for comparison as texts.
void brace_arguments(std::string& text) {
  for (const auto& [command, num_arguments] :
       {std::pair<std::string_view, int>{"\\frac", 2}, {"\\sqrt", 1}}) {
    size_t at = 0;
    while ((at = text.find(command, at)) != kNone) {
      at += command.size();
      while (at < text.size() && text[at] == ' ') text.erase(at, 1);
      size_t i = at;
      for (int argument = 0; argument < num_arguments && i < text.size(); ++argument) {
        if (text[i] == '{' || text[i] == '\\' || text[i] == '[') break;
        // The last argument of a fraction takes all its digits.
        size_t end = i + 1;
        while (num_arguments == 2 && argument == 1 && is_digit(text[i]) && end < text.size() &&
               is_digit(text[end]))
          ++end;
        text.insert(end, "}");
        text.insert(i, "{");
        i = end + 2;
      }
    }
  }
}

void mend_slash(std::string& text) {
  const size_t slash = text.find('/');
  if (slash == kNone || slash == 0 || slash + 1 == text.size()) return;
  const auto is_whole = [](std::string_view digits) {
    return !digits.empty() && std::all_of(digits.begin(), digits.end(), is_digit);
  };
  const std::string_view upper = std::string_view(text).substr(0, slash);
  const std::string_view lower = std::string_view(text).substr(slash + 1);
  if (!is_whole(upper) || !is_whole(lower)) return;
  text = "\\frac{" + std::string(upper) + "}{" + std::string(lower) + "}";
}

}  // namespace

std::string normalise_compat(std::string_view raw, bool only_last_boxes) {
  const std::string opened = opened_boxes(raw, only_last_boxes);
  if (opened.size() > kMaxBytes) return opened;
  std::string text = Rewriter(opened).run();
  for (char& c : text) c = c == '\n' || c == '\t' ? ' ' : c;
  if (text.find("matrix") == kNone) {
    for (size_t at = 0; (at = text.find("\\\\", at)) != kNone; ++at) {
      if (at + 2 < text.size() && is_letter(text[at + 2])) text.erase(at, 1);
    }
  }
  cut_units(text);
  if (text.starts_with('.')) text.insert(text.begin(), '0');
  replace_call(text, "^", "^");
  replace_call(text, "sqrt", "\\sqrt");
  split_log_base(text);
  replace_all(text, " sqrt", "\\sqrt");
  brace_arguments(text);
  mend_slash(text);
  return std::string(trim(text));
}

}  // namespace gradus::rewards::math
