// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "common/status.h"

namespace gradus::data::internal {

struct Span {
  size_t begin, end;  // bytes, end exclusive
};

// A regular expression of a tokenizer.json, run by PCRE2 with Unicode classes and a match limit.
// Such patterns are written for Oniguruma in Ruby syntax, so ^ and $ match at lines; what the two
// read differently (\w, \b, sets in sets, (?m) and others) is refused. Immutable; const calls are
// thread-safe, each with its own Matcher.
class Pattern {
 public:
  // InvalidArgument with PCRE2's words and the offset in the pattern.
  static Result<std::shared_ptr<const Pattern>> compile(const std::string& pattern);
  ~Pattern();
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;
  const std::string& text() const { return text_; }

  // Finds the matches in one text from left to right, empty ones included, but for an empty one
  // right behind the previous match.
  class Matcher {
   public:
    // Both must outlive the matcher; `text` is valid UTF-8.
    Matcher(const Pattern& pattern, std::string_view text);
    ~Matcher();
    Matcher(const Matcher&) = delete;
    Matcher& operator=(const Matcher&) = delete;
    // The next match, or nothing. InvalidArgument when the match limit is reached.
    Result<std::optional<Span>> next();

   private:
    const Pattern& pattern_;
    std::string_view text_;
    std::string stand_in_text_;  // owns text_ when code points had to be exchanged
    void* match_data_;
    size_t position_ = 0;
    std::optional<size_t> last_end_;
  };

 private:
  Pattern(std::string text, void* code) : text_(std::move(text)), code_(code) {}
  std::string text_;
  void* code_;
};

}  // namespace gradus::data::internal
