// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "rewards/code/python_value.h"

namespace gradus::rewards::code {

// Of a name or a number: a letter of ASCII, a digit, a line.
bool is_name_part(char c);

// Reads literals of Python out of a source text: whatever ast.literal_eval takes, and calls of set,
// frozenset, tuple, list, dict and float on such. Members that return false have read something
// else, and leave the place anywhere but where they say that they give it back.
class LiteralReader {
 public:
  LiteralReader(std::string_view text, size_t at) : text_(text), at_(at) {}

  size_t at() const { return at_; }

  // White space, and within brackets also line breaks and comments.
  void skip_space();
  // What comes next behind white space, if it is that; else the place is given back.
  bool take(char c);
  bool word(std::string_view w);
  bool symbol(std::string_view s);
  // "f", "a.b"; empty if there is none.
  std::string name();
  char peek();  // behind white space; 0 at the end

  // Between brackets, which keep line breaks from ending a statement.
  bool open(char bracket);
  bool close(char bracket);

  bool value(PythonValue& out, int depth = 0);
  // Values between brackets; `has_comma` tells (1) from (1,).
  bool sequence(char open_bracket, char close_bracket, PythonValue& out, int depth,
                bool* has_comma = nullptr);

 private:
  bool braces(PythonValue& out, int depth);
  bool parentheses(PythonValue& out, int depth);
  bool called(PythonValue& out, int depth);
  bool number(PythonValue& out);
  bool unsigned_number(PythonValue& out);
  bool texts(PythonValue& out);
  bool text_part(PythonValue& out, bool& is_bytes);
  bool escape(bool is_bytes, std::string& content);
  bool starts_text() const;

  std::string_view text_;
  size_t at_;
  int num_open_ = 0;
};

}  // namespace gradus::rewards::code
