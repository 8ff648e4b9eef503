// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "data/internal/jinja/text.h"

namespace gradus::data::jinja {
namespace {

// Width or precision beyond this is an attack, not a layout.
constexpr int64_t kMaxWidth = 1'000'000;

int64_t read_number(std::string_view text, size_t& i) {
  int64_t number = 0;
  while (i < text.size() && text[i] >= '0' && text[i] <= '9') {
    number = number * 10 + (text[i++] - '0');
    if (number > kMaxWidth) fail("width or precision too large");
  }
  return number;
}

std::string pad(Budget& budget, std::string text, int64_t width, char align,
                std::string_view fill) {
  const int64_t missing = width - count_chars(text);
  if (missing <= 0) return text;
  budget.bytes(missing * static_cast<int64_t>(fill.size()));
  const int64_t left = align == '<' ? 0 : align == '>' ? missing : missing / 2;
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += text;
  for (int64_t i = left; i < missing; ++i) out += fill;
  return out;
}

std::string real_text(double value, char type, int precision, bool is_alternate) {
  const char lower = static_cast<char>(type | 0x20);
  if (!std::isfinite(value)) {
    std::string text = std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
    return type == lower ? text : to_upper(text);
  }
  std::string format = is_alternate ? "%#.*" : "%.*";
  format += type;
  char small[64];
  const int size = std::snprintf(small, sizeof(small), format.c_str(), precision, value);
  if (size < static_cast<int>(sizeof(small))) return small;
  std::string text(static_cast<size_t>(size) + 1, '\0');
  std::snprintf(text.data(), text.size(), format.c_str(), precision, value);
  text.pop_back();
  return text;
}

std::string based_text(Int value, int base, bool is_upper) {
  const bool is_negative = value < 0;
  std::string out;
  do {
    const int digit = std::abs(static_cast<int>(value % base));
    out += (is_upper ? "0123456789ABCDEF" : "0123456789abcdef")[digit];
    value /= base;
  } while (value != 0);
  if (is_negative) out += '-';
  std::reverse(out.begin(), out.end());
  return out;
}

std::string with_separators(const std::string& text, char separator) {
  // Only the integer part is grouped.
  size_t end = 0;
  while (end < text.size() && text[end] >= '0' && text[end] <= '9') ++end;
  std::string out;
  for (size_t i = 0; i < end; ++i) {
    if (i != 0 && (end - i) % 3 == 0) out += separator;
    out += text[i];
  }
  return out + text.substr(end);
}

struct PercentSpec {
  bool is_left = false, has_plus = false, has_space = false, is_alternate = false, has_zero = false;
  int64_t width = 0;
  int precision = -1;
  char type = 's';
};

// Digits with sign, prefix and zeros, as printf lays them out.
std::string lay_out_number(Budget& budget, std::string digits, const std::string& prefix,
                           const PercentSpec& spec) {
  std::string sign;
  if (!digits.empty() && digits[0] == '-') {
    sign = "-";
    digits.erase(0, 1);
  } else if (spec.has_plus) {
    sign = "+";
  } else if (spec.has_space) {
    sign = " ";
  }
  const int64_t used = static_cast<int64_t>(sign.size() + prefix.size());
  if (spec.has_zero && !spec.is_left)
    digits = pad(budget, std::move(digits), spec.width - used, '>', "0");
  return pad(budget, sign + prefix + digits, spec.width, spec.is_left ? '<' : '>', " ");
}

std::string percent_number(Budget& budget, const Value& value, const PercentSpec& spec) {
  const char type = spec.type;
  if (type == 'd' || type == 'i' || type == 'u') {
    Int number = 0;
    if (value.is_integer()) {
      number = value.as_int();
    } else if (value.is(Type::kFloat)) {
      if (!std::isfinite(value.as_double()))
        fail("cannot convert float infinity or NaN to integer");
      number = static_cast<Int>(value.as_double());
    } else {
      require_defined(value);
      fail(fmt::format("%{} format: a real number is required, not {}", type, type_name(value)));
    }
    std::string digits = int_text(number);
    if (spec.precision >= 0) {
      const bool is_negative = digits[0] == '-';
      if (is_negative) digits.erase(0, 1);
      digits = (is_negative ? "-" : "") + pad(budget, std::move(digits), spec.precision, '>', "0");
    }
    return lay_out_number(budget, std::move(digits), "", spec);
  }
  if (type == 'x' || type == 'X' || type == 'o') {
    if (!value.is_integer()) {
      require_defined(value);
      fail(fmt::format("%{} format: an integer is required, not {}", type, type_name(value)));
    }
    std::string prefix;
    if (spec.is_alternate) prefix = type == 'o' ? "0o" : type == 'x' ? "0x" : "0X";
    std::string digits = based_text(value.as_int(), type == 'o' ? 8 : 16, type == 'X');
    if (spec.precision >= 0) {
      const bool is_negative = digits[0] == '-';
      if (is_negative) digits.erase(0, 1);
      digits = (is_negative ? "-" : "") + pad(budget, std::move(digits), spec.precision, '>', "0");
    }
    return lay_out_number(budget, std::move(digits), prefix, spec);
  }
  if (!value.is_number()) {
    require_defined(value);
    fail(fmt::format("must be real number, not {}", type_name(value)));
  }
  return lay_out_number(budget,
                        real_text(value.as_double(), type, spec.precision < 0 ? 6 : spec.precision,
                                  spec.is_alternate),
                        "", spec);
}

}  // namespace

std::string percent_format(Budget& budget, const std::string& format, const Value& args) {
  std::string out;
  const bool is_tuple = args.is(Type::kTuple);
  size_t num_used = 0;
  bool used_mapping = false;
  const auto next_value = [&]() -> Value {
    if (is_tuple) {
      if (num_used >= args.items().size()) fail("not enough arguments for format string");
      return args.items()[num_used++];
    }
    if (num_used++ > 0) fail("not enough arguments for format string");
    return args;
  };
  for (size_t i = 0; i < format.size();) {
    if (format[i] != '%') {
      out += format[i++];
      continue;
    }
    if (++i >= format.size()) fail("incomplete format");
    PercentSpec spec;
    Value mapped;
    if (format[i] == '(') {
      int depth = 1;
      const size_t begin = ++i;
      for (; i < format.size() && depth > 0; ++i)
        depth += format[i] == '(' ? 1 : format[i] == ')' ? -1 : 0;
      if (depth > 0) fail("incomplete format key");
      if (!args.is(Type::kDict)) fail("format requires a mapping");
      const Value* found = args.dict().find(std::string_view(format).substr(begin, i - 1 - begin));
      if (found == nullptr) fail("format key not found");
      mapped = *found;
      used_mapping = true;
    }
    for (; i < format.size(); ++i) {
      if (format[i] == '-')
        spec.is_left = true;
      else if (format[i] == '+')
        spec.has_plus = true;
      else if (format[i] == ' ')
        spec.has_space = true;
      else if (format[i] == '#')
        spec.is_alternate = true;
      else if (format[i] == '0')
        spec.has_zero = true;
      else
        break;
    }
    const auto star = [&] {
      const Value value = next_value();
      if (!value.is_integer()) fail("* wants int");
      if (value.as_int() > kMaxWidth || value.as_int() < -kMaxWidth)
        fail("width or precision too large");
      return static_cast<int64_t>(value.as_int());
    };
    if (i < format.size() && format[i] == '*') {
      spec.width = star();
      if (spec.width < 0) {
        spec.is_left = true;
        spec.width = -spec.width;
      }
      ++i;
    } else {
      spec.width = read_number(format, i);
    }
    if (i < format.size() && format[i] == '.') {
      ++i;
      if (i < format.size() && format[i] == '*') {
        spec.precision = static_cast<int>(std::max<int64_t>(0, star()));
        ++i;
      } else {
        spec.precision = static_cast<int>(read_number(format, i));
      }
    }
    while (i < format.size() && (format[i] == 'h' || format[i] == 'l' || format[i] == 'L')) ++i;
    if (i >= format.size()) fail("incomplete format");
    spec.type = format[i++];
    if (spec.type == '%') {
      out += '%';
      continue;
    }
    const Value value = mapped.is_missing() ? next_value() : mapped;
    std::string text;
    switch (spec.type) {
      case 's':
      case 'r':
      case 'a': {
        if (spec.type == 'a') fail("%a is not supported");
        text = spec.type == 's' ? to_text(budget, value) : to_repr(budget, value);
        if (spec.precision >= 0) text.resize(char_offset(text, spec.precision));
        text = pad(budget, std::move(text), spec.width, spec.is_left ? '<' : '>', " ");
        break;
      }
      case 'c':
        if (value.is_string() && count_chars(value.text()) == 1) {
          text = value.text();
        } else if (value.is_integer() && value.as_int() >= 0 && value.as_int() < 0xD800) {
          append_char(text, static_cast<char32_t>(value.as_int()));
        } else {
          fail("%c requires int or char");
        }
        text = pad(budget, std::move(text), spec.width, spec.is_left ? '<' : '>', " ");
        break;
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o':
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        text = percent_number(budget, value, spec);
        break;
      default:
        fail(fmt::format("unsupported format character '{}'", spec.type));
    }
    budget.bytes(static_cast<int64_t>(text.size()));
    out += text;
  }
  const bool is_all_used = is_tuple ? num_used >= args.items().size()
                                    : num_used > 0 || used_mapping || args.is(Type::kDict) ||
                                          args.is(Type::kList) || args.is(Type::kRange) ||
                                          args.is(Type::kUndefined) || args.is(Type::kDictView);
  if (!is_all_used) fail("not all arguments converted during string formatting");
  return out;
}

std::string format_value(Budget& budget, const Value& value, std::string_view spec) {
  if (spec.empty()) return to_text(budget, value);
  if (!value.is_string() && !value.is_number()) {
    require_defined(value);
    fail(fmt::format("unsupported format string passed to {}.__format__", type_name(value)));
  }
  size_t i = 0;
  std::string fill = " ";
  char align = '\0';
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  size_t first_end = 0;
  next_char(spec, first_end);
  if (first_end < spec.size() && is_align(spec[first_end])) {
    fill = std::string(spec.substr(0, first_end));
    align = spec[first_end];
    i = first_end + 1;
  } else if (is_align(spec[0])) {
    align = spec[i++];
  }
  char sign = '-';
  if (i < spec.size() && (spec[i] == '+' || spec[i] == '-' || spec[i] == ' ')) sign = spec[i++];
  bool is_alternate = false;
  if (i < spec.size() && spec[i] == '#') {
    is_alternate = true;
    ++i;
  }
  if (i < spec.size() && spec[i] == '0') {
    if (align == '\0') {
      fill = "0";
      align = value.is_string() ? '<' : '=';
    }
    ++i;
  }
  const int64_t width = read_number(spec, i);
  char separator = '\0';
  if (i < spec.size() && (spec[i] == ',' || spec[i] == '_')) separator = spec[i++];
  int precision = -1;
  if (i < spec.size() && spec[i] == '.') {
    ++i;
    if (i >= spec.size() || spec[i] < '0' || spec[i] > '9')
      fail("Format specifier missing precision");
    precision = static_cast<int>(read_number(spec, i));
  }
  const char type = i < spec.size() ? spec[i++] : '\0';
  if (i != spec.size()) fail("invalid format specifier");
  if (value.is_string()) {
    if (type != '\0' && type != 's')
      fail(fmt::format("Unknown format code '{}' for object of type 'str'", type));
    if (sign != '-' || align == '=' || separator != '\0')
      fail("sign, '=' or ',' not allowed in string format specifier");
    std::string text = value.text();
    if (precision >= 0) text.resize(char_offset(text, precision));
    return pad(budget, std::move(text), width, align == '\0' ? '<' : align, fill);
  }
  std::string digits, prefix;
  const bool is_integer_type = type == 'd' || type == 'x' || type == 'X' || type == 'o' ||
                               type == 'b' || type == 'n' || type == 'c';
  if (value.is(Type::kBool) && type == '\0') {
    // bool's format is int's.
    digits = int_text(value.as_int());
  } else if (value.is_integer() && (type == '\0' || is_integer_type)) {
    if (precision >= 0) fail("Precision not allowed in integer format specifier");
    if (type == 'n' || type == 'c')
      fail(fmt::format("the format code '{}' is not supported", type));
    const int base = type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
    digits = base == 10 ? int_text(value.as_int()) : based_text(value.as_int(), base, type == 'X');
    if (is_alternate && base != 10) prefix = std::string("0") + type;
  } else if (type == '\0' || type == 'e' || type == 'E' || type == 'f' || type == 'F' ||
             type == 'g' || type == 'G' || type == '%') {
    const double real = value.as_double();
    if (type == '%') {
      digits = real_text(real * 100, 'f', precision < 0 ? 6 : precision, is_alternate) + "%";
    } else if (type == '\0' && precision < 0) {
      digits = repr_float(real);
    } else if (type == '\0') {
      // Like 'g', but with one digit behind the point at least.
      digits = real_text(real, 'g', precision == 0 ? 1 : precision, is_alternate);
      if (digits.find_first_of(".en") == std::string::npos) {
        if (count_chars(digits) - (digits[0] == '-' ? 1 : 0) >= std::max(precision, 1)) {
          digits = real_text(real, 'e', std::max(precision, 1) - 1, is_alternate);
        } else {
          digits += ".0";
        }
      }
    } else {
      digits = real_text(real, type, precision < 0 ? 6 : precision, is_alternate);
    }
  } else {
    fail(fmt::format("Unknown format code '{}' for object of type '{}'", type, type_name(value)));
  }
  std::string sign_text;
  if (digits[0] == '-') {
    sign_text = "-";
    digits.erase(0, 1);
  } else if (sign != '-') {
    sign_text = std::string(1, sign);
  }
  sign_text += prefix;
  if (separator != '\0') digits = with_separators(digits, separator);
  if (align == '=') {
    digits =
        pad(budget, std::move(digits), width - static_cast<int64_t>(sign_text.size()), '>', fill);
    return sign_text + digits;
  }
  return pad(budget, sign_text + digits, width, align == '\0' ? '>' : align, fill);
}

namespace {

void append_json_text(std::string_view text, bool ensure_ascii, std::string& out) {
  out += '"';
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    const char32_t c = next_char(text, offset);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\b':
        out += "\\b";
        break;
      default:
        if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000 && c != 0x7F)) {
          out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
        } else if (ensure_ascii && c >= 0x10000) {
          const auto rest = static_cast<uint32_t>(c) - 0x10000;
          out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
        } else {
          out += text.substr(begin, offset - begin);
        }
    }
  }
  out += '"';
}

std::string json_real(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return repr_float(value);
}

std::string json_key(const Value& key) {
  switch (key.type()) {
    case Type::kString:
      return key.text();
    case Type::kNone:
      return "null";
    case Type::kBool:
      return key.as_bool() ? "true" : "false";
    case Type::kInt:
      return int_text(key.as_int());
    case Type::kFloat:
      return json_real(key.as_double());
    default:
      fail(fmt::format("keys must be str, int, float, bool or None, not {}", type_name(key)));
  }
}

void append_json(Budget& budget, const Value& value, const JsonStyle& style, int level,
                 std::string& out) {
  DepthGuard guard(budget);
  budget.step();
  const size_t size_before = out.size();
  const auto new_line = [&](int at_level) {
    if (!style.has_indent) return;
    out += '\n';
    for (int i = 0; i < at_level; ++i) out += style.indent;
  };
  switch (value.type()) {
    case Type::kNone:
      out += "null";
      break;
    case Type::kBool:
      out += value.as_bool() ? "true" : "false";
      break;
    case Type::kInt:
      out += int_text(value.as_int());
      break;
    case Type::kFloat:
      out += json_real(value.as_double());
      break;
    case Type::kString:
      append_json_text(value.text(), style.ensure_ascii, out);
      break;
    case Type::kList:
    case Type::kTuple: {
      if (value.items().empty()) {
        out += "[]";
        break;
      }
      out += '[';
      bool first = true;
      for (const Value& item : value.items()) {
        if (!first) out += style.item_separator;
        first = false;
        new_line(level + 1);
        append_json(budget, item, style, level + 1, out);
      }
      new_line(level);
      out += ']';
      return;
    }
    case Type::kDict: {
      auto items = value.dict().items;
      if (items.empty()) {
        out += "{}";
        break;
      }
      if (style.sort_keys) {
        std::stable_sort(items.begin(), items.end(), [&](const auto& a, const auto& b) {
          return less(budget, a.first, b.first);
        });
      }
      out += '{';
      bool first = true;
      for (const auto& [key, item] : items) {
        if (!first) out += style.item_separator;
        first = false;
        new_line(level + 1);
        append_json_text(json_key(key), style.ensure_ascii, out);
        out += style.key_separator;
        append_json(budget, item, style, level + 1, out);
      }
      new_line(level);
      out += '}';
      return;
    }
    default:
      fail(fmt::format("Object of type {} is not JSON serializable", type_name(value)));
  }
  budget.bytes(static_cast<int64_t>(out.size() - size_before));
}

}  // namespace

std::string to_json(Budget& budget, const Value& value, const JsonStyle& style) {
  std::string out;
  append_json(budget, value, style, 0, out);
  return out;
}

}  // namespace gradus::data::jinja
