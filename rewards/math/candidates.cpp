// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/candidates.h"

#include <algorithm>
#include <array>

#include "rewards/math/extract.h"

namespace gradus::rewards::math {
namespace {

constexpr size_t kNone = std::string_view::npos;
constexpr size_t kMaxEnvironmentBytes = 4096;  // longer ones are no expression anyway
constexpr size_t kMaxBoxes = 16;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

constexpr std::array<std::string_view, 14> kCurrencies = {
    "$",      "\u20ac", "\u00a3", "\u00a5", "\u20b9", "\u20bd", "\u20aa",
    "\u20a9", "\u20ab", "\u0e3f", "\u20a1", "\u20a6", "\u20b1", "\u20bf"};

// Length in bytes of a character of plain expressions at `at`, 0 for any other; `is_operator` says
// whether it is one of + - * / ^ ( ) and the signs for times and divide.
size_t expression_character(std::string_view text, size_t at, bool& is_operator) {
  const char c = text[at];
  is_operator = c == '+' || c == '-' || c == '*' || c == '/' || c == '^' || c == '(' || c == ')';
  if (is_operator || is_digit(c) || c == '.' || is_space(c)) return 1;
  const std::string_view rest = text.substr(at, 2);
  is_operator = rest == "\u00d7" || rest == "\u00f7";
  return is_operator ? 2 : 0;
}

// What may follow a plain expression: . , : ) $ or space, the end, also after **.
bool is_suffix(std::string_view text, size_t at) {
  if (text.substr(at).starts_with("**")) {
    if (at + 2 == text.size()) return true;
    const char c = text[at + 2];
    if (c == '.' || c == ',' || c == ':' || c == ')' || c == '$' || is_space(c)) return true;
  }
  if (at == text.size()) return true;
  const char c = text[at];
  return c == '.' || c == ',' || c == ':' || c == ')' || c == '$' || is_space(c);
}

// A percent sign or word at `at`: its length.
size_t percent_length(std::string_view text, size_t at) {
  const std::string_view rest = text.substr(std::min(at, text.size()));
  for (const std::string_view word : {"\\%", "%", "percent", "Percent", "pct", "Pct"}) {
    if (!rest.starts_with(word)) continue;
    const bool has_age = word.size() > 3 && rest.substr(word.size()).starts_with("age");
    return word.size() + (has_age ? 3 : 0);
  }
  return 0;
}

bool comes_earlier(const Candidate& a, const Candidate& b) {
  return a.end != b.end ? a.end > b.end : a.begin < b.begin;
}

}  // namespace

size_t CandidateFinder::skip_spaces(size_t at) const {
  while (at < text_.size() && is_space(text_[at])) ++at;
  return at;
}

size_t CandidateFinder::find_ignoring_case(std::string_view lower_word, size_t from) const {
  for (size_t at = from; at + lower_word.size() <= text_.size(); ++at) {
    const char c = text_[at];
    if (c != lower_word[0] && c != lower_word[0] - 32) continue;
    size_t length = 1;
    while (length < lower_word.size() && lower(text_[at + length]) == lower_word[length]) ++length;
    if (length == lower_word.size()) return at;
  }
  return kNone;
}

// ---- LaTeX environments ----

// $$...$$ on any lines, $...$ on one line.
bool CandidateFinder::find_dollars(size_t at, std::string_view& content, size_t& end) const {
  if (at > 0 && text_[at - 1] == '\\') return false;
  const std::string_view window =
      text_.substr(0, std::min(text_.size(), at + kMaxEnvironmentBytes));
  if (starts_with(at, "$$")) {
    const size_t close = window.find("$$", at + 2);
    if (close != kNone && close > at + 2 && window[close - 1] != '\\') {
      content = text_.substr(at + 2, close - at - 2);
      end = close + 2;
      return true;
    }
  }
  if (at > 0 && is_digit(text_[at - 1])) return false;
  for (size_t i = at + 1; i < window.size() && window[i] != '\n'; ++i) {
    if (window[i] != '$' || window[i - 1] == '\\') continue;
    if (i == at + 1) return false;
    content = text_.substr(at + 1, i - at - 1);
    end = i + 1;
    return true;
  }
  return false;
}

// \[...\] on any lines, \(...\) on one line.
bool CandidateFinder::find_bracketed(size_t at, std::string_view& content, size_t& end) const {
  if (at > 0 && text_[at - 1] == '\\') return false;
  const bool is_display = text_[at + 1] == '[';
  // All openings before one closing mark share it, so the search goes over the text once.
  ClosingMark& mark = is_display ? display_mark_ : inline_mark_;
  if (at + 2 < mark.searched_from || (mark.at != kNone && mark.at < at + 2) || !mark.is_searched) {
    mark = {true, at + 2, text_.find(is_display ? "\\]" : "\\)", at + 2)};
  }
  const size_t close = mark.at;
  if (close == kNone || close == at + 2 || close > at + kMaxEnvironmentBytes) return false;
  if (text_[close - 1] == '\\') return false;
  content = text_.substr(at + 2, close - at - 2);
  if (!is_display && content.find('\n') != kNone) return false;
  end = close + 2;
  return true;
}

// -\frac{1}{2} without an environment, numbers only.
bool CandidateFinder::find_fraction(size_t at, std::string_view& content, size_t& end) const {
  size_t i = at + (text_[at] == '-' ? 1 : 0);
  if (!starts_with(i, "\\frac")) return false;
  i += 5;
  for (int part = 0; part < 2; ++part) {
    if (i >= text_.size() || text_[i] != '{') return false;
    ++i;
    if (i < text_.size() && text_[i] == '-') ++i;
    const size_t digits = i;
    while (i < text_.size() && is_digit(text_[i])) ++i;
    if (i == digits) return false;
    if (i + 1 < text_.size() && (text_[i] == '.' || text_[i] == ',') && is_digit(text_[i + 1])) {
      ++i;
      while (i < text_.size() && is_digit(text_[i])) ++i;
    }
    if (i >= text_.size() || text_[i] != '}') return false;
    ++i;
  }
  content = text_.substr(at, i - at);
  end = i;
  return true;
}

bool CandidateFinder::find_environment(size_t at, bool needs_box, Environment& environment) const {
  if (at >= text_.size()) return false;
  const char c = text_[at];
  std::string_view content;
  size_t end = 0;
  bool is_found = false;
  if (c == '$') {
    is_found = find_dollars(at, content, end);
  } else if (c == '\\' && at + 1 < text_.size() && (text_[at + 1] == '[' || text_[at + 1] == '(')) {
    is_found = find_bracketed(at, content, end);
  } else if ((c == '\\' || c == '-') && !needs_box) {
    is_found = find_fraction(at, content, end);
  } else if (is_space(c) && at + 1 < text_.size() && text_[at + 1] == '[') {
    size_t i = at + 2;
    while (i < text_.size() && text_[i] != ']' && text_[i] != '[' && text_[i] != '\n' &&
           i < at + kMaxEnvironmentBytes) {
      ++i;
    }
    is_found = i > at + 2 && i + 1 < text_.size() && text_[i] == ']' && is_space(text_[i + 1]);
    content = text_.substr(at + 2, i - at - 2);
    end = i + 2;
  }
  if (!is_found) return false;
  if (needs_box) {
    const size_t box = content.find("\\boxed{");
    if (box == kNone || content.find('}', box + 8) == kNone) return false;
  }
  end = skip_spaces(end);
  const size_t percent = percent_length(text_, end);
  environment = {content, end + percent, percent > 0};
  return true;
}

bool CandidateFinder::find_environments(size_t at, bool needs_box, Candidate& candidate) const {
  Environment environment;
  if (!find_environment(at, needs_box, environment)) return false;
  candidate = {.type = Candidate::Type::kLatex, .begin = at};
  candidate.pieces = {{environment.content, environment.has_percent}};
  candidate.end = environment.end;
  while (candidate.pieces.size() < 6) {
    size_t next = skip_spaces(candidate.end);
    const bool has_comma = starts_with(next, ",");
    if (has_comma) ++next;
    if (starts_with(next, "and")) {
      next += 3;
    } else if (starts_with(next, "or")) {
      next += 2;
    } else if (!has_comma) {
      break;
    }
    const size_t begin = skip_spaces(next);
    // The environment " [...] " wants the space before it.
    const bool has_space = begin > next && find_environment(begin - 1, needs_box, environment);
    if (!find_environment(begin, needs_box, environment) && !has_space) break;
    candidate.pieces.push_back({environment.content, environment.has_percent});
    candidate.end = environment.end;
  }
  return true;
}

// ---- plain numbers and expressions ----

CandidateFinder::Plain CandidateFinder::find_number(size_t at) const {
  Plain plain;
  for (const std::string_view sign : kCurrencies) {
    if (starts_with(at, sign)) {
      at += sign.size();
      break;
    }
  }
  const size_t begin = at;
  const auto digits_from = [&](size_t i) {
    while (i < text_.size() && is_digit(text_[i])) ++i;
    return i;
  };
  const size_t first = at < text_.size() && text_[at] == '-' ? at + 1 : at;
  const size_t whole_end = digits_from(first);
  size_t end = kNone;
  if (whole_end > first && whole_end - first <= 3 && text_[first] != '0') {
    size_t i = whole_end;
    while (i + 3 < text_.size() && (text_[i] == ',' || text_[i] == ' ') && is_digit(text_[i + 1]) &&
           is_digit(text_[i + 2]) && is_digit(text_[i + 3])) {
      i += 4;
    }
    if (i > whole_end) {
      end = i;
      if (i + 1 < text_.size() && text_[i] == '.' && is_digit(text_[i + 1]))
        end = digits_from(i + 1);
    }
  }
  if (end == kNone && whole_end > first) {
    end = whole_end;
    if (end + 1 < text_.size() && (text_[end] == '.' || text_[end] == ',') &&
        is_digit(text_[end + 1])) {
      end = digits_from(end + 1);
    }
  }
  if (end == kNone && at + 1 < text_.size() && text_[at] == '.' && is_digit(text_[at + 1])) {
    end = digits_from(at + 1);
  }
  if (end == kNone) return plain;
  plain = {true, Candidate::Type::kNumber, text_.substr(begin, end - begin), end, false};
  const size_t percent_at = skip_spaces(end);
  const size_t percent = starts_with(percent_at, "\\%") ? 0 : percent_length(text_, percent_at);
  if (percent > 0) {
    plain.has_percent = true;
    plain.end = percent_at + percent;
  }
  return plain;
}

CandidateFinder::Plain CandidateFinder::find_arithmetic(size_t at) const {
  size_t first = at;
  for (const char c : {'-', '(', '-'}) {
    if (first < text_.size() && text_[first] == c) ++first;
  }
  if (first >= text_.size() || !is_digit(text_[first])) return {};
  if (!(run_begin_ <= first && first < run_end_)) {
    run_begin_ = first;
    run_end_ = first;
    run_operator_ = kNone;
    bool is_operator = false;
    while (run_end_ < text_.size()) {
      const size_t length = expression_character(text_, run_end_, is_operator);
      if (length == 0) break;
      run_end_ += length;
    }
    run_stop_ = run_end_;
    while (run_stop_ > run_begin_ && !is_suffix(text_, run_stop_)) --run_stop_;
    // The last operator with something behind it.
    for (size_t i = run_begin_; i < run_stop_;) {
      const size_t length = expression_character(text_, i, is_operator);
      if (is_operator && i + length < run_stop_) run_operator_ = i;
      i += length;
    }
  }
  if (run_operator_ == kNone || run_operator_ <= first || run_stop_ <= first) return {};
  return {true, Candidate::Type::kArithmetic, text_.substr(at, run_stop_ - at), run_stop_, false};
}

// At `at` stands what goes before a plain expression: the start, a space or an equals sign.
CandidateFinder::Plain CandidateFinder::find_plain(size_t at, bool takes_arithmetic,
                                                   bool takes_number) const {
  const auto find_behind = [&](size_t prefix) -> Plain {
    size_t begin = at + prefix;
    for (const bool skips_stars : {true, false}) {
      if (skips_stars && !starts_with(begin, "**")) continue;
      const size_t start = begin + (skips_stars ? 2 : 0);
      if (takes_arithmetic) {
        const Plain plain = find_arithmetic(start);
        if (plain.is_found) return plain;
      }
      if (takes_number) {
        const Plain plain = find_number(start);
        if (plain.is_found) return plain;
      }
    }
    return {};
  };
  if (at == 0) {
    const Plain plain = find_behind(0);
    if (plain.is_found) return plain;
  }
  if (at < text_.size() && (is_space(text_[at]) || text_[at] == '=')) return find_behind(1);
  return {};
}

// ---- groups ----

void CandidateFinder::add_boxes(std::vector<Candidate>& found) const {
  const size_t first = text_.find("\\boxed{");
  if (first == kNone) return;
  const size_t last = text_.rfind('}');
  if (last != kNone && last > first + 7) {
    found.push_back(
        {Candidate::Type::kBox, first, last + 1, {{text_.substr(first, last + 1 - first)}}});
  }
  // The last boxes alone: what ends last is tried first.
  std::vector<size_t> boxes;
  for (size_t box = last_command(text_, "\\boxed{", text_.size());
       box != kNone && boxes.size() < kMaxBoxes; box = last_command(text_, "\\boxed{", box)) {
    boxes.insert(boxes.begin(), box);
  }
  size_t from = 0;
  for (const size_t box : boxes) {
    if (box < from) continue;
    const size_t start =
        std::max(from, box > kMaxEnvironmentBytes ? box - kMaxEnvironmentBytes : 0);
    for (size_t at = start; at < box; ++at) {
      const char c = text_[at];
      if (c != '$' && c != '\\' && c != ' ' && c != '\n' && c != '\t') continue;
      Environment environment;
      if (!find_environment(at, false, environment) || environment.end < box) continue;
      Candidate candidate;
      if (!find_environments(at, true, candidate)) continue;
      from = candidate.end;
      found.push_back(std::move(candidate));
      break;
    }
  }
}

void CandidateFinder::add_final_answers(bool needs_hope, std::vector<Candidate>& found) const {
  const auto is_hope = [&](size_t at) {
    if (starts_with(at, ".")) ++at;
    if (at < text_.size() && is_space(text_[at])) ++at;
    return starts_with(at, "I hope");
  };
  size_t from = 0;
  for (;;) {
    const size_t at = find_ignoring_case("final answer", from);
    if (at == kNone) return;
    from = at + 1;
    const size_t limit = std::min(text_.size(), at + 12 + (needs_hope ? 0 : 100));
    bool is_done = false;
    for (size_t i = at + 12; i <= limit && i < text_.size() && !is_done; ++i) {
      const size_t word = needs_hope ? i + 1 : skip_spaces(i);
      if (word == i || (needs_hope && text_[i] != ' ')) continue;
      const bool is_is =
          starts_with(word, "is") || (needs_hope && lower(text_[word]) == 'i' &&
                                      lower(text_[std::min(word + 1, text_.size() - 1)]) == 's');
      if (!is_is) continue;
      size_t next = word + 2 + (starts_with(word + 2, ":") ? 1 : 0);
      const size_t begin = skip_spaces(next);
      Candidate candidate;
      if (takes_latex_ &&
          (find_environments(begin, false, candidate) ||
           (begin > next && find_environments(begin - 1, false, candidate))) &&
          (!needs_hope || is_hope(candidate.end) ||
           (candidate.end > 0 && is_hope(candidate.end - 1)))) {
        candidate.begin = at;
        from = candidate.end;
        found.push_back(std::move(candidate));
        is_done = true;
      }
      if (!takes_plain_) continue;
      const size_t plain_at = needs_hope && begin > next ? begin - 1 : next;
      const Plain plain = find_plain(plain_at);
      if (plain.is_found && (!needs_hope || is_hope(plain.end))) {
        found.push_back({plain.type, at, plain.end, {{plain.text, plain.has_percent}}});
        from = std::max(from, plain.end);
        is_done = true;
      }
    }
  }
}

bool CandidateFinder::is_followed_by_equals(size_t at) const {
  return starts_with(skip_spaces(at), "=");
}

// The first environment within 50 characters.
bool CandidateFinder::latex_after_answer(size_t at, Candidate& candidate) const {
  for (size_t i = at; i <= at + 50 && i < text_.size(); ++i) {
    const char c = text_[i];
    if (c != '$' && c != '\\' && c != '-' && !is_space(c)) continue;
    if (find_environments(i, false, candidate)) return true;
  }
  return false;
}

// Behind the last equals sign within 100 characters of the line, else the first within 50.
CandidateFinder::Plain CandidateFinder::plain_after_answer(size_t at) const {
  const size_t line_end = std::min(text_.find('\n', at), text_.size());
  for (size_t equals = std::min(at + 101, line_end); equals-- > at;) {
    if (text_[equals] != '=') continue;
    const size_t begin = skip_spaces(equals + 1);
    const size_t prefix = begin > equals + 1 ? begin - 1 : equals + 1;
    if (prefix >= text_.size() || (!is_space(text_[prefix]) && text_[prefix] != '=')) continue;
    const Plain plain = find_plain(prefix);
    if (plain.is_found && !is_followed_by_equals(plain.end)) return plain;
  }
  for (size_t i = at; i <= at + 50 && i <= line_end; ++i) {
    const Plain plain = find_plain(i);
    if (plain.is_found && !is_followed_by_equals(plain.end)) return plain;
  }
  return {};
}

void CandidateFinder::add_after_answer(bool needs_colon, std::vector<Candidate>& found) const {
  size_t latex_from = 0, plain_from = 0;
  for (size_t at = find_ignoring_case("answer", 0); at != kNone;
       at = find_ignoring_case("answer", at + 1)) {
    if (needs_colon && !starts_with(at + 6, ":")) continue;
    const size_t next = at + 6 + (needs_colon ? 1 : 0);
    Candidate candidate;
    if (takes_latex_ && at >= latex_from && latex_after_answer(next, candidate)) {
      candidate.begin = at;
      latex_from = candidate.end;
      found.push_back(std::move(candidate));
    }
    if (!takes_plain_ || at < plain_from) continue;
    const Plain plain = plain_after_answer(next);
    if (!plain.is_found) continue;
    plain_from = plain.end;
    found.push_back({plain.type, at, plain.end, {{plain.text, plain.has_percent}}});
  }
}

void CandidateFinder::add_anywhere(std::vector<Candidate>& found) const {
  size_t latex_from = 0, number_from = 0, arithmetic_from = 0;
  for (size_t at = 0; at < text_.size(); ++at) {
    const char c = text_[at];
    const bool starts_plain = at == 0 || is_space(c) || c == '=';
    if (takes_latex_ && at >= latex_from && (c == '$' || c == '\\' || c == '-' || is_space(c))) {
      Candidate candidate;
      if (find_environments(at, false, candidate)) {
        latex_from = candidate.end;
        found.push_back(std::move(candidate));
      }
    }
    if (!takes_plain_ || !starts_plain) continue;
    if (at >= arithmetic_from) {
      const Plain plain = find_plain(at, true, false);
      if (plain.is_found) {
        arithmetic_from = plain.end;
        found.push_back({plain.type, at, plain.end, {{plain.text, false}}});
      }
    }
    if (at >= number_from) {
      const Plain plain = find_plain(at, false, true);
      if (plain.is_found) {
        number_from = plain.end;
        found.push_back({plain.type, at, plain.end, {{plain.text, plain.has_percent}}});
      }
    }
  }
}

std::vector<Candidate> CandidateFinder::group(int index) {
  std::vector<Candidate> found;
  switch (index) {
    case 0:
      if (takes_latex_) add_boxes(found);
      if (text_.find("I hope") != kNone) add_final_answers(true, found);
      break;
    case 1:
      add_final_answers(false, found);
      break;
    case 2:
      add_after_answer(true, found);
      break;
    case 3:
      add_after_answer(false, found);
      break;
    default:
      add_anywhere(found);
      break;
  }
  std::stable_sort(found.begin(), found.end(), comes_earlier);
  return found;
}

}  // namespace gradus::rewards::math
