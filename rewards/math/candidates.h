// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace gradus::rewards::math {

// A place in a text that may hold the answer.
struct Candidate {
  enum class Type { kLatex, kBox, kNumber, kArithmetic };
  struct Piece {
    std::string_view text;
    bool has_percent = false;
  };
  Type type = Type::kLatex;
  size_t begin = 0;
  size_t end = 0;
  std::vector<Piece> pieces;  // several LaTeX environments joined by commas, "and", "or"
};

// Finds candidates in the order in which Math-Verify 0.9.0 tries them: group by group, within a
// group the one that ends last first, the longer one of those that end together. Matching is that
// of its regular expressions, by hand-written scanners in linear time.
class CandidateFinder {
 public:
  CandidateFinder(std::string_view text, bool takes_latex, bool takes_plain)
      : text_(text), takes_latex_(takes_latex), takes_plain_(takes_plain) {}

  // 0 boxes and "final answer is X I hope", 1 "final answer ... is", 2 "answer:", 3 "answer",
  // 4 anywhere.
  static constexpr int kNumGroups = 5;
  std::vector<Candidate> group(int index);

 private:
  struct Environment {
    std::string_view content;
    size_t end = 0;
    bool has_percent = false;
  };
  // Plain notation that matched: its own text and where the match ends.
  struct Plain {
    bool is_found = false;
    Candidate::Type type = Candidate::Type::kNumber;
    std::string_view text;
    size_t end = 0;
    bool has_percent = false;
  };

  bool find_environment(size_t at, bool needs_box, Environment& environment) const;
  bool find_dollars(size_t at, std::string_view& content, size_t& end) const;
  bool find_bracketed(size_t at, std::string_view& content, size_t& end) const;
  bool find_fraction(size_t at, std::string_view& content, size_t& end) const;
  // Up to six environments joined; false when none stands at `at`.
  bool find_environments(size_t at, bool needs_box, Candidate& candidate) const;

  Plain find_plain(size_t at, bool takes_arithmetic = true, bool takes_number = true) const;
  Plain find_number(size_t at) const;
  Plain find_arithmetic(size_t at) const;

  void add_boxes(std::vector<Candidate>& found) const;
  void add_final_answers(bool needs_hope, std::vector<Candidate>& found) const;
  void add_after_answer(bool needs_colon, std::vector<Candidate>& found) const;
  void add_anywhere(std::vector<Candidate>& found) const;
  bool latex_after_answer(size_t at, Candidate& candidate) const;
  Plain plain_after_answer(size_t at) const;
  bool is_followed_by_equals(size_t at) const;

  size_t skip_spaces(size_t at) const;
  bool starts_with(size_t at, std::string_view word) const {
    return text_.substr(std::min(at, text_.size())).starts_with(word);
  }
  size_t find_ignoring_case(std::string_view lower_word, size_t from) const;

  std::string_view text_;
  bool takes_latex_;
  bool takes_plain_;
  struct ClosingMark {
    bool is_searched = false;
    size_t searched_from = 0;
    size_t at = 0;
  };
  mutable ClosingMark display_mark_, inline_mark_;
  // Of the run of expression characters that find_arithmetic met last.
  mutable size_t run_begin_ = 1, run_end_ = 0, run_stop_ = 0, run_operator_ = 0;
};

}  // namespace gradus::rewards::math
