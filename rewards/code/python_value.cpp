// SPDX-License-Identifier: Apache-2.0
#include "rewards/code/python_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

namespace gradus::rewards::code {
namespace {

using Json = nlohmann::json;
using Kind = PythonValue::Kind;

// Beyond this a JSON reader may take an int for a double.
constexpr size_t kMaxPlainDigits = 15;

bool is_number(const PythonValue& value) {
  return value.kind == Kind::kBool || value.kind == Kind::kInt || value.kind == Kind::kFloat ||
         value.kind == Kind::kComplex;
}

bool is_set(const PythonValue& value) {
  return value.kind == Kind::kSet || value.kind == Kind::kFrozenset;
}

double to_double(const PythonValue& value) {
  if (value.kind == Kind::kBool) return value.truth ? 1 : 0;
  return value.kind == Kind::kInt ? std::strtod(value.text.c_str(), nullptr) : value.real;
}

void append_sized(std::string_view text, std::string& out) {
  out += fmt::format("{}:", text.size());
  out += text;
}

void append_real_key(double value, std::string& out) {
  if (std::isfinite(value) && value == std::trunc(value)) {
    out += fmt::format("n{:.0f};", value == 0 ? 0.0 : value);  // all digits of a double of any size
  } else {
    out += fmt::format("r{:a};", value);
  }
}

bool append_key(const PythonValue& value, std::string& out);

bool append_set_key(const PythonValue& value, std::string& out) {
  std::vector<std::string> keys(value.items.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!append_key(value.items[i], keys[i])) return false;
  }
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  out += fmt::format("z{}", keys.size());
  for (const std::string& key : keys) append_sized(key, out);
  return true;
}

// Values are equal where their keys are. False for what has none: the unhashable, nan, objects.
bool append_key(const PythonValue& value, std::string& out) {
  switch (value.kind) {
    case Kind::kNone:
      out += 'N';
      return true;
    case Kind::kBool:
      out += value.truth ? "n1;" : "n0;";
      return true;
    case Kind::kInt:
      out += "n" + value.text + ";";
      return true;
    case Kind::kFloat:
    case Kind::kComplex:
      if (std::isnan(value.real) || std::isnan(value.imaginary)) return false;
      append_real_key(value.real, out);
      if (value.imaginary != 0) {
        out += 'i';
        append_real_key(value.imaginary, out);
      }
      return true;
    case Kind::kText:
    case Kind::kBytes:
      out += value.kind == Kind::kText ? 't' : 'b';
      append_sized(value.text, out);
      return true;
    case Kind::kTuple:
      out += fmt::format("({}", value.items.size());
      return std::all_of(value.items.begin(), value.items.end(),
                         [&](const PythonValue& item) { return append_key(item, out); });
    case Kind::kFrozenset:
      return append_set_key(value, out);
    case Kind::kList:
    case Kind::kSet:
    case Kind::kDict:
    case Kind::kObject:
      return false;
  }
  return false;
}

bool is_equal_number(const PythonValue& returned, const PythonValue& expected, double tolerance) {
  std::string key, wanted;
  if (!append_key(returned, key) || !append_key(expected, wanted)) return false;
  if (key == wanted) return true;
  const auto is_real = [](const PythonValue& value) {
    return value.kind == Kind::kInt || value.kind == Kind::kFloat;
  };
  if (tolerance <= 0 || !is_real(returned) || !is_real(expected)) return false;
  const double value = to_double(returned), target = to_double(expected);
  return std::isfinite(value) && std::isfinite(target) &&
         std::abs(value - target) <= tolerance * std::max(1.0, std::abs(target));
}

// By the keys of the dict; the last value of a key counts. False if a key has none.
bool index_dict(const PythonValue& dict, std::map<std::string, const PythonValue*>& index) {
  for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    std::string key;
    if (!append_key(dict.items[i], key)) return false;
    index[key] = &dict.items[i + 1];
  }
  return true;
}

bool is_equal_dict(const PythonValue& returned, const PythonValue& expected, double tolerance) {
  std::map<std::string, const PythonValue*> index, wanted;
  if (!index_dict(returned, index) || !index_dict(expected, wanted)) return false;
  return std::equal(index.begin(), index.end(), wanted.begin(), wanted.end(),
                    [&](const auto& one, const auto& other) {
                      return one.first == other.first &&
                             is_equal(*one.second, *other.second, tolerance);
                    });
}

Json wire_of(const PythonValue& value);

Json wire_of_items(const PythonValue& value) {
  Json items = Json::array();
  for (const PythonValue& item : value.items) items.push_back(wire_of(item));
  return items;
}

Json wire_of_real(double value) {
  if (std::isnan(value)) return {{"f", "nan"}};
  if (std::isinf(value)) return {{"f", value > 0 ? "inf" : "-inf"}};
  return value;
}

Json wire_of(const PythonValue& value) {
  switch (value.kind) {
    case Kind::kNone:
      return nullptr;
    case Kind::kBool:
      return value.truth;
    case Kind::kInt:
      if (value.text.size() > kMaxPlainDigits) return {{"i", value.text}};
      return std::strtoll(value.text.c_str(), nullptr, 10);
    case Kind::kFloat:
      return wire_of_real(value.real);
    case Kind::kComplex: {
      Json parts = Json::array();
      parts.push_back(wire_of_real(value.real));
      parts.push_back(wire_of_real(value.imaginary));
      return {{"c", parts}};
    }
    case Kind::kText:
      return value.text;
    case Kind::kBytes: {
      std::string hex;
      for (const char c : value.text) hex += fmt::format("{:02x}", static_cast<unsigned char>(c));
      return {{"b", hex}};
    }
    case Kind::kList:
      return wire_of_items(value);
    case Kind::kTuple:
      return {{"t", wire_of_items(value)}};
    case Kind::kSet:
      return {{"s", wire_of_items(value)}};
    case Kind::kFrozenset:
      return {{"z", wire_of_items(value)}};
    case Kind::kDict: {
      Json pairs = Json::array();
      for (size_t i = 0; i + 1 < value.items.size(); i += 2) {
        Json pair = Json::array();
        pair.push_back(wire_of(value.items[i]));
        pair.push_back(wire_of(value.items[i + 1]));
        pairs.push_back(std::move(pair));
      }
      return {{"d", pairs}};
    }
    case Kind::kObject: {
      Json about = Json::array();
      about.push_back(value.text);
      about.push_back(value.truth);
      return {{"o", about}};
    }
  }
  return nullptr;
}

bool read_wire(const Json& json, int depth, PythonValue& value);

bool read_items(const Json& json, int depth, Kind kind, PythonValue& value) {
  value.kind = kind;
  if (!json.is_array()) return false;
  value.items.resize(json.size());
  for (size_t i = 0; i < json.size(); ++i) {
    if (!read_wire(json[i], depth + 1, value.items[i])) return false;
  }
  return true;
}

bool read_digits(const Json& json, PythonValue& value) {
  value.kind = Kind::kInt;
  if (!json.is_string()) return false;
  value.text = json.get<std::string>();
  const size_t begin = value.text.starts_with('-') ? 1 : 0;
  return value.text.size() > begin && value.text[begin] >= '1' && value.text[begin] <= '9' &&
         value.text.find_first_not_of("0123456789", begin) == std::string::npos;
}

bool read_special(const Json& json, PythonValue& value) {
  value.kind = Kind::kFloat;
  if (json != "nan" && json != "inf" && json != "-inf") return false;
  value.real = std::strtod(json.get<std::string>().c_str(), nullptr);
  return true;
}

bool read_complex(const Json& json, PythonValue& value) {
  PythonValue parts;
  if (!read_items(json, 0, Kind::kList, parts) || parts.items.size() != 2) return false;
  value.kind = Kind::kComplex;
  value.real = to_double(parts.items[0]);
  value.imaginary = to_double(parts.items[1]);
  return parts.items[0].kind == Kind::kFloat && parts.items[1].kind == Kind::kFloat;
}

bool read_hex(const Json& json, PythonValue& value) {
  value.kind = Kind::kBytes;
  if (!json.is_string()) return false;
  const std::string hex = json.get<std::string>();
  if (hex.size() % 2 != 0 || hex.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return false;
  }
  for (size_t i = 0; i < hex.size(); i += 2) {
    value.text += static_cast<char>(std::strtol(hex.substr(i, 2).c_str(), nullptr, 16));
  }
  return true;
}

bool read_dict(const Json& json, int depth, PythonValue& value) {
  value.kind = Kind::kDict;
  if (!json.is_array()) return false;
  for (const Json& pair : json) {
    if (!pair.is_array() || pair.size() != 2) return false;
    for (const Json& part : pair) {
      if (!read_wire(part, depth + 1, value.items.emplace_back())) return false;
    }
  }
  return true;
}

bool read_object(const Json& json, PythonValue& value) {
  value.kind = Kind::kObject;
  if (!json.is_array() || json.size() != 2 || !json[0].is_string() || !json[1].is_boolean()) {
    return false;
  }
  value.text = json[0].get<std::string>();
  value.truth = json[1].get<bool>();
  return true;
}

bool read_tagged(const Json& json, int depth, PythonValue& value) {
  if (json.size() != 1 || json.begin().key().size() != 1) return false;
  const Json& content = *json.begin();
  switch (json.begin().key()[0]) {
    case 'i':
      return read_digits(content, value);
    case 'f':
      return read_special(content, value);
    case 'c':
      return read_complex(content, value);
    case 'b':
      return read_hex(content, value);
    case 't':
      return read_items(content, depth, Kind::kTuple, value);
    case 's':
      return read_items(content, depth, Kind::kSet, value);
    case 'z':
      return read_items(content, depth, Kind::kFrozenset, value);
    case 'd':
      return read_dict(content, depth, value);
    case 'o':
      return read_object(content, value);
    default:
      return false;
  }
}

// What JSON has itself; false for lists, objects and what is no JSON.
bool read_plain(const Json& json, PythonValue& value) {
  switch (json.type()) {
    case Json::value_t::null:
      return true;
    case Json::value_t::boolean:
      value.kind = Kind::kBool;
      value.truth = json.get<bool>();
      return true;
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      value.kind = Kind::kInt;
      value.text = json.dump();
      return true;
    case Json::value_t::number_float:
      value.kind = Kind::kFloat;
      value.real = json.get<double>();
      return true;
    case Json::value_t::string:
      value.kind = Kind::kText;
      value.text = json.get<std::string>();
      return true;
    case Json::value_t::array:
    case Json::value_t::object:
    case Json::value_t::binary:
    case Json::value_t::discarded:
      return false;
  }
  return false;
}

bool read_wire(const Json& json, int depth, PythonValue& value) {
  if (depth > kMaxPythonDepth) return false;
  if (json.is_array()) return read_items(json, depth, Kind::kList, value);
  return json.is_object() ? read_tagged(json, depth, value) : read_plain(json, value);
}

bool read_json(const Json& json, int depth, PythonValue& value) {
  if (depth > kMaxPythonDepth) return false;
  if (json.is_array()) {
    value.kind = Kind::kList;
    for (const Json& item : json) {
      if (!read_json(item, depth + 1, value.items.emplace_back())) return false;
    }
    return true;
  }
  if (!json.is_object()) return read_plain(json, value);
  value.kind = Kind::kDict;
  for (const auto& [name, member] : json.items()) {
    PythonValue& key = value.items.emplace_back();
    key.kind = Kind::kText;
    key.text = name;
    if (!read_json(member, depth + 1, value.items.emplace_back())) return false;
  }
  return true;
}

// Of values that to_json_value() has let pass. Ints keep all their digits.
std::string json_text(const PythonValue& value) {
  if (value.kind == Kind::kInt) return value.text;
  if (value.kind != Kind::kList && value.kind != Kind::kDict) {
    return wire_of(value).dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  std::string out(1, value.kind == Kind::kList ? '[' : '{');
  for (size_t i = 0; i < value.items.size(); ++i) {
    if (i > 0) out += value.kind == Kind::kDict && i % 2 == 1 ? ':' : ',';
    out += json_text(value.items[i]);
  }
  return out + (value.kind == Kind::kList ? ']' : '}');
}

std::string quoted(std::string_view text, bool is_bytes) {
  const char quote = text.find('\'') != text.npos && text.find('"') == text.npos ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n' || c == '\t' || c == '\r') {
      out += c == '\n' ? "\\n" : c == '\t' ? "\\t" : "\\r";
    } else if (byte < 0x20 || byte == 0x7F || (is_bytes && byte >= 0x80)) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      if (c == quote || c == '\\') out += '\\';
      out += c;
    }
  }
  return (is_bytes ? "b" : "") + out + quote;
}

std::string real_text(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  return text;
}

std::string joined(const PythonValue& value) {
  std::string out;
  for (size_t i = 0; i < value.items.size(); ++i) {
    if (i > 0) out += value.kind == Kind::kDict && i % 2 == 1 ? ": " : ", ";
    out += to_python(value.items[i]);
  }
  return out;
}

}  // namespace

bool is_equal(const PythonValue& returned, const PythonValue& expected, double tolerance) {
  if (is_number(returned) && is_number(expected)) {
    return is_equal_number(returned, expected, tolerance);
  }
  if (is_set(returned) && is_set(expected)) {
    std::string key, wanted;
    return append_set_key(returned, key) && append_set_key(expected, wanted) && key == wanted;
  }
  if (returned.kind != expected.kind || returned.kind == Kind::kObject) return false;
  if (returned.kind == Kind::kDict) return is_equal_dict(returned, expected, tolerance);
  return returned.text == expected.text &&
         std::equal(returned.items.begin(), returned.items.end(), expected.items.begin(),
                    expected.items.end(), [&](const PythonValue& one, const PythonValue& other) {
                      return is_equal(one, other, tolerance);
                    });
}

bool is_true(const PythonValue& value) {
  switch (value.kind) {
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kObject:
      return value.truth;
    case Kind::kInt:
      return value.text != "0";
    case Kind::kFloat:
    case Kind::kComplex:
      return value.real != 0 || value.imaginary != 0;
    case Kind::kText:
    case Kind::kBytes:
      return !value.text.empty();
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kSet:
    case Kind::kFrozenset:
    case Kind::kDict:
      return !value.items.empty();
  }
  return false;
}

bool is_hashable(const PythonValue& value) {
  if (value.kind == Kind::kList || value.kind == Kind::kSet || value.kind == Kind::kDict) {
    return false;
  }
  return std::all_of(value.items.begin(), value.items.end(), is_hashable);
}

bool has_nan(const PythonValue& value) {
  return std::isnan(value.real) || std::isnan(value.imaginary) ||
         std::any_of(value.items.begin(), value.items.end(), has_nan);
}

std::string to_wire(const PythonValue& value) {
  return wire_of(value).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::optional<PythonValue> from_wire(std::string_view wire) {
  const Json json = Json::parse(wire.begin(), wire.end(), nullptr, false);
  PythonValue value;
  if (json.is_discarded() || !read_wire(json, 0, value)) return std::nullopt;
  return value;
}

std::string to_python(const PythonValue& value) {
  switch (value.kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return value.truth ? "True" : "False";
    case Kind::kInt:
      return value.text;
    case Kind::kFloat:
      return real_text(value.real);
    case Kind::kComplex:
      return fmt::format("({}{:+}j)", value.real, value.imaginary);
    case Kind::kText:
    case Kind::kBytes:
      return quoted(value.text, value.kind == Kind::kBytes);
    case Kind::kList:
      return "[" + joined(value) + "]";
    case Kind::kTuple:
      return "(" + joined(value) + (value.items.size() == 1 ? ",)" : ")");
    case Kind::kSet:
      return value.items.empty() ? "set()" : "{" + joined(value) + "}";
    case Kind::kFrozenset:
      return value.items.empty() ? "frozenset()" : "frozenset({" + joined(value) + "})";
    case Kind::kDict:
      return "{" + joined(value) + "}";
    case Kind::kObject:
      return "<" + value.text + ">";
  }
  return "";
}

std::optional<PythonValue> to_json_value(const PythonValue& value, bool is_argument) {
  PythonValue plain = value;
  switch (value.kind) {
    case Kind::kNone:
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kText:
      return plain;
    case Kind::kFloat:
      if (!std::isfinite(value.real)) return std::nullopt;
      return plain;
    case Kind::kSet:
    case Kind::kFrozenset:
      if (!is_argument) return std::nullopt;  // a list has an order
      plain.kind = Kind::kList;
      break;
    case Kind::kList:
    case Kind::kTuple:
      plain.kind = Kind::kList;
      break;
    case Kind::kDict:
      for (size_t i = 0; i < value.items.size(); i += 2) {
        if (value.items[i].kind != Kind::kText) return std::nullopt;
      }
      break;
    case Kind::kComplex:
    case Kind::kBytes:
    case Kind::kObject:
      return std::nullopt;
  }
  for (PythonValue& item : plain.items) {
    auto part = to_json_value(item, is_argument);
    if (!part.has_value()) return std::nullopt;
    item = std::move(*part);
  }
  return plain;
}

std::optional<std::string> to_json(const PythonValue& value, bool is_argument) {
  const auto plain = to_json_value(value, is_argument);
  if (!plain.has_value()) return std::nullopt;
  return json_text(*plain);
}

std::optional<PythonValue> from_json(std::string_view text) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, false);
  PythonValue value;
  if (json.is_discarded() || !read_json(json, 0, value)) return std::nullopt;
  return value;
}

}  // namespace gradus::rewards::code
