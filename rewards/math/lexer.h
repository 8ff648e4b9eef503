// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gradus::rewards::math {

enum class TokenType : uint8_t {
  kEnd,
  kNumber,     // digits, at most one point: "12", ".5"
  kLetter,     // one letter, lower case
  kWord,       // a known word of plain notation: "sqrt", "pi"
  kCommand,    // \name, without the backslash; one character for \{ \% \\ and their like
  kText,       // \text{content} and its relatives
  kBegin,      // \begin{name}, with the column letters of an array skipped
  kEndOf,      // \end{name}
  kCharacter,  // any other ASCII character
};

struct Token {
  TokenType type = TokenType::kEnd;
  std::string text;
  size_t begin = 0;  // offset in the text
  bool has_space_before = false;
};

// Cuts LaTeX or plain notation into tokens; spacing, sizing and font commands are dropped, Unicode
// signs become their commands, letters lower case. Never fails: what it does not know is a
// kCharacter or a kCommand that the parser refuses. Linear time.
struct LexerOptions {
  bool reads_words = false;  // sqrt(2), pi, sin(x) without backslashes
};
std::vector<Token> tokenize(std::string_view text, const LexerOptions& options);

}  // namespace gradus::rewards::math
