// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/internal/jinja/value.h"

// Python's text functions on UTF-8. Text is valid UTF-8 throughout; positions and lengths that
// templates see count code points.
namespace gradus::data::jinja {

int64_t count_chars(std::string_view text);
// Byte offset of code point `index`, which is in [0, count_chars].
size_t char_offset(std::string_view text, int64_t index);
void append_char(std::string& out, char32_t code_point);
// Code point at `offset`, which is moved behind it.
char32_t next_char(std::string_view text, size_t& offset);

bool is_space(char32_t code_point);
bool is_alphanumeric(char32_t code_point);
bool is_identifier(std::string_view text);

// `chars` empty: white space.
std::string_view strip(std::string_view text, bool left, bool right, std::string_view chars = {},
                       bool use_chars = false);
std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string capitalize(std::string_view text);
// str.title; the filter of that name differs.
std::string title(std::string_view text);
std::string swap_case(std::string_view text);
std::string fold_case(std::string_view text);
bool is_lower(std::string_view text);
bool is_upper(std::string_view text);
bool is_title(std::string_view text);
// Whether text is not empty and every code point is of the class that `kind` names:
// "alpha", "digit", "decimal", "numeric", "alnum", "space".
bool all_chars(std::string_view text, std::string_view kind);
bool is_printable(char32_t code_point);

std::vector<std::string> split_lines(std::string_view text, bool keep_ends);
// str.split and str.rsplit by white space; max_split < 0: no limit.
std::vector<std::string> split_space(std::string_view text, int64_t max_split, bool from_right);
std::vector<std::string> split_by(Budget& budget, std::string_view text, std::string_view separator,
                                  int64_t max_split, bool from_right);
// str.replace; count < 0: all.
std::string replace(Budget& budget, std::string_view text, std::string_view from,
                    std::string_view to, int64_t count);
// Byte offset of the first or last occurrence in linear time, or npos.
size_t find_text(std::string_view text, std::string_view part, size_t from = 0);
size_t find_last_text(Budget& budget, std::string_view text, std::string_view part);

std::string escape_html(std::string_view text);
std::string repr_text(std::string_view text);
std::string repr_float(double value);
std::string int_text(Int value);
// int(text, base) and float(text); false if Python refuses.
bool parse_int(std::string_view text, int base, Int& out);
bool parse_float(std::string_view text, double& out);

// str % args.
std::string percent_format(Budget& budget, const std::string& format, const Value& args);
// format(value, spec).
std::string format_value(Budget& budget, const Value& value, std::string_view spec);

// json.dumps.
struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool has_indent = false;
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
std::string to_json(Budget& budget, const Value& value, const JsonStyle& style);

}  // namespace gradus::data::jinja
