// SPDX-License-Identifier: Apache-2.0
#include "data/internal/jinja/text.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "data/internal/jinja/case_tables.h"

namespace gradus::data::jinja {
namespace {

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool is_letter_or_mark_case(char32_t c) {
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LL ||
         kind == UTF8PROC_CATEGORY_LT;
}
bool is_upper_char(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x2160 && c <= 0x216F) ||
         (c >= 0x24B6 && c <= 0x24CF);
}
bool is_lower_char(char32_t c) {
  // Python's Lowercase property: Ll and Other_Lowercase, whose common members are listed.
  return category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA ||
         (c >= 0x2B0 && c <= 0x2B8) || (c >= 0x2170 && c <= 0x217F) || (c >= 0x24D0 && c <= 0x24E9);
}
bool is_title_char(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LT; }

// Appends a full case mapping: the special one, else the simple one.
template <size_t N>
void append_mapped(std::string& out, char32_t c, const std::array<SpecialCase, N>& special,
                   utf8proc_int32_t (*simple)(utf8proc_int32_t)) {
  const auto found = std::lower_bound(
      special.begin(), special.end(), c,
      [](const SpecialCase& entry, char32_t wanted) { return entry.from < wanted; });
  if (found != special.end() && found->from == c) {
    out += found->to;
    return;
  }
  append_char(out, static_cast<char32_t>(simple(static_cast<utf8proc_int32_t>(c))));
}

void append_upper(std::string& out, char32_t c) {
  append_mapped(out, c, kSpecialUpper, utf8proc_toupper);
}
void append_title(std::string& out, char32_t c) {
  append_mapped(out, c, kSpecialTitle, utf8proc_totitle);
}

bool is_cased(char32_t c) {
  return is_letter_or_mark_case(c) || is_lower_char(c) || is_upper_char(c);
}
bool is_case_ignorable(char32_t c) {
  if (c == '\'' || c == '.' || c == ':' || c == '^' || c == '`' || c == 0xA8 || c == 0xAD ||
      c == 0xAF || c == 0xB4 || c == 0xB7 || c == 0xB8 || c == 0x2018 || c == 0x2019 ||
      c == 0x2024 || c == 0x2027) {
    return true;
  }
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return false;
  }
}

// A capital sigma at [offset, end) is final when a cased letter stands before and none after it.
bool is_final_sigma(std::string_view text, size_t offset, size_t end) {
  size_t before = offset;
  bool has_cased_before = false;
  while (before > 0) {
    do {
      --before;
    } while (before > 0 && (static_cast<unsigned char>(text[before]) & 0xC0) == 0x80);
    size_t next = before;
    const char32_t c = next_char(text, next);
    if (is_case_ignorable(c)) continue;
    has_cased_before = is_cased(c);
    break;
  }
  if (!has_cased_before) return false;
  while (end < text.size()) {
    const char32_t c = next_char(text, end);
    if (is_case_ignorable(c)) continue;
    return !is_cased(c);
  }
  return true;
}

void append_lower(std::string& out, std::string_view text, size_t offset, size_t end, char32_t c) {
  if (c == 0x3A3) {
    append_char(out, is_final_sigma(text, offset, end) ? 0x3C2 : 0x3C3);
  } else if (c == 0x130) {
    out += "i\xCC\x87";
  } else {
    append_char(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

// Whether a line ends at `offset`, and where the next begins.
bool line_end(std::string_view text, size_t offset, size_t& next) {
  const auto c = static_cast<unsigned char>(text[offset]);
  next = offset + 1;
  if (c == '\r') {
    if (next < text.size() && text[next] == '\n') ++next;
    return true;
  }
  if (c == '\n' || c == '\v' || c == '\f' || (c >= 0x1C && c <= 0x1E)) return true;
  if (c == 0xC2 && text.compare(offset, 2, "\xC2\x85") == 0) {
    next = offset + 2;
    return true;
  }
  if (c == 0xE2 && (text.compare(offset, 3, "\xE2\x80\xA8") == 0 ||
                    text.compare(offset, 3, "\xE2\x80\xA9") == 0)) {
    next = offset + 3;
    return true;
  }
  return false;
}

}  // namespace

int64_t count_chars(std::string_view text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

size_t char_offset(std::string_view text, int64_t index) {
  size_t offset = 0;
  while (index > 0 && offset < text.size()) {
    ++offset;
    while (offset < text.size() && (static_cast<unsigned char>(text[offset]) & 0xC0) == 0x80)
      ++offset;
    --index;
  }
  return offset;
}

void append_char(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | (c >> 12));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (c >> 18));
    out += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

char32_t next_char(std::string_view text, size_t& offset) {
  const auto byte = [&](size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[i]));
  };
  const char32_t first = byte(offset);
  const size_t size = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  char32_t c = size == 1 ? first : first & (0x7Fu >> size);
  for (size_t i = 1; i < size && offset + i < text.size(); ++i)
    c = (c << 6) | (byte(offset + i) & 0x3F);
  offset = std::min(offset + size, text.size());
  return c;
}

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_alphanumeric(char32_t c) {
  if (c < 0x80) return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
  switch (category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      return false;
  }
}

bool is_identifier(std::string_view text) {
  if (text.empty()) return false;
  size_t offset = 0;
  const char32_t first = next_char(text, offset);
  if (first != '_' && (!is_alphanumeric(first) || category(first) == UTF8PROC_CATEGORY_ND ||
                       category(first) == UTF8PROC_CATEGORY_NO)) {
    return false;
  }
  while (offset < text.size()) {
    const char32_t c = next_char(text, offset);
    if (c != '_' && (!is_alphanumeric(c) || category(c) == UTF8PROC_CATEGORY_NO)) return false;
  }
  return true;
}

std::string_view strip(std::string_view text, bool left, bool right, std::string_view chars,
                       bool use_chars) {
  const auto is_stripped = [&](size_t begin, size_t end) {
    if (use_chars) {
      const std::string_view wanted = text.substr(begin, end - begin);
      for (size_t offset = 0; offset < chars.size();) {
        const size_t from = offset;
        next_char(chars, offset);
        if (chars.substr(from, offset - from) == wanted) return true;
      }
      return false;
    }
    return is_space(next_char(text, begin));
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    size_t next = begin;
    next_char(text, next);
    if (!is_stripped(begin, next)) break;
    begin = next;
  }
  while (right && begin < end) {
    size_t previous = end;
    do {
      --previous;
    } while (previous > begin && (static_cast<unsigned char>(text[previous]) & 0xC0) == 0x80);
    if (!is_stripped(previous, end)) break;
    end = previous;
  }
  return text.substr(begin, end - begin);
}

std::string to_upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) append_upper(out, next_char(text, offset));
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    const char32_t c = next_char(text, offset);
    append_lower(out, text, begin, offset, c);
  }
  return out;
}

std::string capitalize(std::string_view text) {
  std::string out;
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    const char32_t c = next_char(text, offset);
    if (begin == 0) {
      append_title(out, c);
    } else {
      append_lower(out, text, begin, offset, c);
    }
  }
  return out;
}

std::string title(std::string_view text) {
  std::string out;
  bool is_inside = false;
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    const char32_t c = next_char(text, offset);
    if (is_inside) {
      append_lower(out, text, begin, offset, c);
    } else {
      append_title(out, c);
    }
    is_inside = is_cased(c);
  }
  return out;
}

std::string fold_case(std::string_view text) {
  utf8proc_uint8_t* folded = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &folded, UTF8PROC_CASEFOLD);
  if (size < 0) fail("the case of the text cannot be folded");
  std::string out(reinterpret_cast<const char*>(folded), static_cast<size_t>(size));
  std::free(folded);
  return out;
}

std::string swap_case(std::string_view text) {
  std::string out;
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    const char32_t c = next_char(text, offset);
    if (is_upper_char(c)) {
      append_lower(out, text, begin, offset, c);
    } else if (is_lower_char(c)) {
      append_upper(out, c);
    } else {
      append_char(out, c);
    }
  }
  return out;
}

namespace {

bool has_one_case(std::string_view text, bool wants_lower) {
  bool is_any = false;
  for (size_t offset = 0; offset < text.size();) {
    const char32_t c = next_char(text, offset);
    if (is_title_char(c) || (wants_lower ? is_upper_char(c) : is_lower_char(c))) return false;
    is_any = is_any || (wants_lower ? is_lower_char(c) : is_upper_char(c));
  }
  return is_any;
}

}  // namespace

bool is_lower(std::string_view text) { return has_one_case(text, true); }
bool is_upper(std::string_view text) { return has_one_case(text, false); }

bool is_title(std::string_view text) {
  bool is_any = false, was_cased = false;
  for (size_t offset = 0; offset < text.size();) {
    const char32_t c = next_char(text, offset);
    if (is_upper_char(c) || is_title_char(c)) {
      if (was_cased) return false;
      was_cased = is_any = true;
    } else if (is_lower_char(c)) {
      if (!was_cased) return false;
      is_any = true;
    } else {
      was_cased = false;
    }
  }
  return is_any;
}

bool all_chars(std::string_view text, std::string_view kind) {
  if (text.empty()) return false;
  for (size_t offset = 0; offset < text.size();) {
    const char32_t c = next_char(text, offset);
    const auto of = category(c);
    const bool is_decimal = of == UTF8PROC_CATEGORY_ND;
    const bool is_super = c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
                          (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089);
    bool fits = false;
    if (kind == "space")
      fits = is_space(c);
    else if (kind == "decimal")
      fits = is_decimal;
    else if (kind == "digit")
      fits = is_decimal || is_super;
    else if (kind == "numeric")
      fits = is_decimal || of == UTF8PROC_CATEGORY_NL || of == UTF8PROC_CATEGORY_NO;
    else if (kind == "alnum")
      fits = is_alphanumeric(c);
    else if (kind == "alpha") {
      fits = is_alphanumeric(c) && !is_decimal && of != UTF8PROC_CATEGORY_NL &&
             of != UTF8PROC_CATEGORY_NO;
    }
    if (!fits) return false;
  }
  return true;
}

bool is_printable(char32_t c) {
  if (c == ' ') return true;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::vector<std::string> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string> lines;
  size_t begin = 0, offset = 0;
  while (offset < text.size()) {
    size_t next = 0;
    if (!line_end(text, offset, next)) {
      ++offset;
      continue;
    }
    lines.emplace_back(text.substr(begin, (keep_ends ? next : offset) - begin));
    begin = offset = next;
  }
  if (begin < text.size()) lines.emplace_back(text.substr(begin));
  return lines;
}

std::vector<std::string> split_space(std::string_view text, int64_t max_split, bool from_right) {
  std::vector<std::string> parts;
  if (from_right) {
    text = strip(text, false, true);
    while (!text.empty()) {
      if (max_split >= 0 && static_cast<int64_t>(parts.size()) == max_split) {
        parts.emplace_back(text);
        break;
      }
      size_t begin = text.size();
      while (begin > 0) {
        size_t previous = begin;
        do {
          --previous;
        } while (previous > 0 && (static_cast<unsigned char>(text[previous]) & 0xC0) == 0x80);
        size_t next = previous;
        if (is_space(next_char(text, next))) break;
        begin = previous;
      }
      parts.emplace_back(text.substr(begin));
      text = strip(text.substr(0, begin), false, true);
    }
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  text = strip(text, true, false);
  while (!text.empty()) {
    if (max_split >= 0 && static_cast<int64_t>(parts.size()) == max_split) {
      parts.emplace_back(text);
      break;
    }
    size_t end = 0;
    while (end < text.size()) {
      size_t next = end;
      if (is_space(next_char(text, next))) break;
      end = next;
    }
    parts.emplace_back(text.substr(0, end));
    text = strip(text.substr(end), true, false);
  }
  return parts;
}

size_t find_text(std::string_view text, std::string_view part, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (part.empty()) return from;
  // memmem is linear; string_view::find is quadratic on periodic text.
  const void* found = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found == nullptr ? std::string_view::npos
                          : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t find_last_text(Budget& budget, std::string_view text, std::string_view part) {
  // The search is quadratic on periodic text, so its worst case is paid for.
  budget.step(
      static_cast<int64_t>(text.size() / 64 * std::min<size_t>(part.size(), text.size()) / 64));
  return text.rfind(part);
}

std::vector<std::string> split_by(Budget& budget, std::string_view text, std::string_view separator,
                                  int64_t max_split, bool from_right) {
  if (separator.empty()) fail("empty separator");
  std::vector<std::string> parts;
  const auto is_full = [&] {
    return max_split >= 0 && static_cast<int64_t>(parts.size()) >= max_split;
  };
  if (from_right) {
    while (!is_full()) {
      budget.step();
      const size_t found = find_last_text(budget, text, separator);
      if (found == std::string_view::npos) break;
      parts.emplace_back(text.substr(found + separator.size()));
      text = text.substr(0, found);
    }
    parts.emplace_back(text);
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  size_t begin = 0;
  while (!is_full()) {
    budget.step();
    const size_t found = find_text(text, separator, begin);
    if (found == std::string_view::npos) break;
    parts.emplace_back(text.substr(begin, found - begin));
    begin = found + separator.size();
  }
  parts.emplace_back(text.substr(begin));
  return parts;
}

std::string replace(Budget& budget, std::string_view text, std::string_view from,
                    std::string_view to, int64_t count) {
  std::string out;
  size_t offset = 0;
  if (from.empty()) {
    // Before every code point and at the end.
    while (count != 0) {
      budget.bytes(static_cast<int64_t>(to.size()));
      budget.step();
      out += to;
      --count;
      if (offset >= text.size()) return out;
      const size_t begin = offset;
      next_char(text, offset);
      out += text.substr(begin, offset - begin);
    }
    return out.append(text.substr(offset));
  }
  while (count != 0) {
    const size_t found = find_text(text, from, offset);
    if (found == std::string_view::npos) break;
    budget.bytes(static_cast<int64_t>(to.size()));
    budget.step();
    out += text.substr(offset, found - offset);
    out += to;
    offset = found + from.size();
    --count;
  }
  return out.append(text.substr(offset));
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string repr_text(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    const char32_t c = next_char(text, offset);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out += text.substr(begin, offset - begin);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  return out += quote;
}

std::string repr_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string_view text(buffer, static_cast<size_t>(end - buffer));
  std::string out;
  if (text.front() == '-') {
    out = "-";
    text.remove_prefix(1);
  }
  const size_t e = text.find('e');
  std::string digits(text.substr(0, 1));
  if (e > 2) digits += text.substr(2, e - 2);
  int exponent = 0;
  const bool is_plus = text[e + 1] == '+';
  std::from_chars(text.data() + e + (is_plus ? 2 : 1), text.data() + text.size(), exponent);
  const int num_digits = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits.substr(0, 1);
    if (num_digits > 1) out += "." + digits.substr(1);
    return out + fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0)
    return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (num_digits <= exponent + 1) {
    return out + digits + std::string(static_cast<size_t>(exponent + 1 - num_digits), '0') + ".0";
  }
  const auto point = static_cast<size_t>(exponent + 1);
  return out + digits.substr(0, point) + "." + digits.substr(point);
}

std::string int_text(Int value) {
  const bool is_negative = value < 0;
  __extension__ typedef unsigned __int128 UnsignedInt;
  auto rest = is_negative ? UnsignedInt{0} - static_cast<UnsignedInt>(value)
                          : static_cast<UnsignedInt>(value);
  std::string out;
  do {
    out += static_cast<char>('0' + static_cast<int>(rest % 10));
    rest /= 10;
  } while (rest != 0);
  if (is_negative) out += '-';
  std::reverse(out.begin(), out.end());
  return out;
}

bool parse_int(std::string_view text, int base, Int& out) {
  text = strip(text, true, true);
  bool is_negative = false;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    is_negative = text[0] == '-';
    text.remove_prefix(1);
  }
  if (text.size() > 1 && text[0] == '0') {
    const char prefix = static_cast<char>(text[1] | 0x20);
    const int of = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 0;
    if (of != 0 && (base == of || base == 0)) {
      base = of;
      text.remove_prefix(2);
      if (!text.empty() && text[0] == '_') text.remove_prefix(1);
    }
  }
  if (base == 0) {
    base = 10;
    const bool is_zero = text.find_first_not_of("0_") == std::string_view::npos;
    if (text.size() > 1 && text[0] == '0' && !is_zero) return false;
  }
  if (text.empty() || text.back() == '_' || text.front() == '_') return false;
  Int value = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '_') {
      if (text[i - 1] == '_') return false;
      continue;
    }
    int digit = 0;
    if (c >= '0' && c <= '9')
      digit = c - '0';
    else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z')
      digit = (c | 0x20) - 'a' + 10;
    else
      return false;
    if (digit >= base) return false;
    if (__builtin_mul_overflow(value, static_cast<Int>(base), &value) ||
        __builtin_add_overflow(value, static_cast<Int>(digit), &value)) {
      fail("integer overflow: beyond 127 bits");
    }
  }
  out = is_negative ? -value : value;
  return true;
}

bool parse_float(std::string_view text, double& out) {
  text = strip(text, true, true);
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto is_digit = [&](size_t k) {
      return k < text.size() && text[k] >= '0' && text[k] <= '9';
    };
    if (text[i] == '_') {
      if (i == 0 || !is_digit(i - 1) || !is_digit(i + 1)) return false;
      continue;
    }
    digits += text[i];
  }
  std::string_view rest = digits;
  double sign = 1;
  if (!rest.empty() && (rest[0] == '-' || rest[0] == '+')) {
    sign = rest[0] == '-' ? -1 : 1;
    rest.remove_prefix(1);
  }
  if (rest.empty()) return false;
  const std::string lower = to_lower(rest);
  if (lower == "inf" || lower == "infinity") {
    out = sign * std::numeric_limits<double>::infinity();
    return true;
  }
  if (lower == "nan") {
    out = std::numeric_limits<double>::quiet_NaN();
    return true;
  }
  if (!((rest[0] >= '0' && rest[0] <= '9') || rest[0] == '.')) return false;
  const auto result = std::from_chars(rest.data(), rest.data() + rest.size(), out);
  if (result.ptr != rest.data() + rest.size()) return false;
  if (result.ec == std::errc::result_out_of_range) {
    // Too large is infinity and too small is zero, as for strtod.
    out = std::strtod(std::string(rest).c_str(), nullptr);
  } else if (result.ec != std::errc()) {
    return false;
  }
  out *= sign;
  return true;
}

}  // namespace gradus::data::jinja
