// SPDX-License-Identifier: Apache-2.0
#include "records/internal/json_text.h"

#include <charconv>
#include <cmath>

#include "common/strings.h"

namespace gradus::records::internal {
namespace {

void append_escaped(std::string& out, std::string_view text, JsonContext context) {
  constexpr char kHex[] = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool is_markup =
        context == JsonContext::kHtmlScript && (c == '<' || c == '>' || c == '&');
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7F || is_markup) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
}

template <class Number>
void append_number(std::string& out, Number value) {
  if (std::isnan(value)) {
    out += "\"NaN\"";
  } else if (std::isinf(value)) {
    out += value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
  } else {
    char text[64];
    out.append(text, std::to_chars(text, text + sizeof(text), value).ptr);
  }
}

}  // namespace

void append_json_string(std::string& out, std::string_view text, JsonContext context) {
  out += '"';
  while (const auto bad = first_invalid_utf8(text)) {
    append_escaped(out, text.substr(0, *bad), context);
    out += "\xEF\xBF\xBD";
    // The bytes that continue the broken character belong to the same replacement.
    size_t next = *bad + 1;
    while (next < text.size() && (static_cast<unsigned char>(text[next]) & 0xC0) == 0x80) ++next;
    text.remove_prefix(next);
  }
  append_escaped(out, text, context);
  out += '"';
}

void append_json_number(std::string& out, double value) { append_number(out, value); }
void append_json_number(std::string& out, float value) { append_number(out, value); }

}  // namespace gradus::records::internal
