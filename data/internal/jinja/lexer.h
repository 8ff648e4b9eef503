// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/internal/jinja/value.h"

namespace gradus::data::jinja {

enum class TokenKind {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string text;  // of names, operators, data and strings (unescaped)
  Int integer = 0;
  double real = 0;

  bool is_operator(std::string_view symbol) const {
    return kind == TokenKind::kOperator && text == symbol;
  }
  bool is_name(std::string_view name) const { return kind == TokenKind::kName && text == name; }
};

// What a message calls the token.
std::string describe(const Token& token);

// The tokens of a template, white space control applied (trim_blocks and lstrip_blocks on). The
// last is kEnd. Throws TemplateError with its line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace gradus::data::jinja
