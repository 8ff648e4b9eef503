// SPDX-License-Identifier: Apache-2.0
#include "rewards/code/compare_output.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

namespace gradus::rewards::code {
namespace {

using Tokens = std::vector<std::string_view>;

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

Tokens tokens_of(std::string_view text) {
  Tokens tokens;
  for (size_t at = 0; at < text.size();) {
    if (is_space(text[at])) {
      ++at;
      continue;
    }
    const size_t begin = at;
    while (at < text.size() && !is_space(text[at])) ++at;
    tokens.push_back(text.substr(begin, at - begin));
  }
  return tokens;
}

std::vector<Tokens> lines_of(std::string_view text) {
  std::vector<Tokens> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    Tokens tokens = tokens_of(text.substr(begin, end - begin));
    if (!tokens.empty()) lines.push_back(std::move(tokens));
    begin = end + 1;
  }
  return lines;
}

bool is_near(double value, double expected, double tolerance) {
  return std::isfinite(value) &&
         std::abs(value - expected) <= tolerance * std::max(1.0, std::abs(expected));
}

bool read_number(std::string_view token, double& value) {
  if (token.starts_with('+')) token.remove_prefix(1);
  const auto [stop, error] = std::from_chars(token.data(), token.data() + token.size(), value);
  return error == std::errc() && stop == token.data() + token.size() && std::isfinite(value);
}

bool is_same_token(std::string_view printed, std::string_view expected, double tolerance) {
  if (printed == expected) return true;
  double value = 0, wanted = 0;
  return tolerance > 0 && read_number(printed, value) && read_number(expected, wanted) &&
         is_near(value, wanted, tolerance);
}

bool is_same_tokens(const Tokens& printed, const Tokens& expected, double tolerance) {
  return std::equal(
      printed.begin(), printed.end(), expected.begin(), expected.end(),
      [&](std::string_view a, std::string_view b) { return is_same_token(a, b, tolerance); });
}

// Numbers keep their digits: those of 64-bit libraries end where Python's do not.
struct Value {
  enum Kind { kNull, kBool, kWhole, kReal, kText, kList, kObject } kind = kNull;
  std::string text;  // of a number or a text; "true", "false"
  std::vector<Value> items;
  std::map<std::string, Value> members;
};

constexpr size_t kMaxDepth = 200;

class ValueReader {
 public:
  Value value;

  bool null() { return put({}); }
  bool boolean(bool truth) { return put({Value::kBool, truth ? "true" : "false", {}, {}}); }
  bool number_integer(int64_t number) {
    return put({Value::kWhole, std::to_string(number), {}, {}});
  }
  bool number_unsigned(uint64_t number) {
    return put({Value::kWhole, std::to_string(number), {}, {}});
  }
  bool number_float(double, const std::string& digits) {
    const bool is_whole = digits.find_first_of(".eE") == std::string::npos;
    return put({is_whole ? Value::kWhole : Value::kReal, digits, {}, {}});
  }
  bool string(std::string& text) { return put({Value::kText, text, {}, {}}); }
  bool binary(std::vector<uint8_t>&) { return false; }
  bool start_object(size_t) { return open({Value::kObject, "", {}, {}}); }
  bool key(std::string& name) {
    key_ = name;
    return true;
  }
  bool end_object() { return close(); }
  bool start_array(size_t) { return open({Value::kList, "", {}, {}}); }
  bool end_array() { return close(); }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception&) { return false; }

 private:
  Value* place() {
    if (path_.empty()) return &value;
    Value& parent = *path_.back();
    if (parent.kind == Value::kObject) return &parent.members[key_];
    return &parent.items.emplace_back();
  }
  bool put(Value part) {
    *place() = std::move(part);
    return true;
  }
  bool open(Value part) {
    if (path_.size() == kMaxDepth) return false;
    Value* at = place();
    *at = std::move(part);
    path_.push_back(at);
    return true;
  }
  bool close() {
    path_.pop_back();
    return true;
  }

  std::vector<Value*> path_;  // an element stays where it is while it is the last of its list
  std::string key_;
};

bool read_value(std::string_view json, Value& value) {
  ValueReader reader;
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &reader)) return false;
  value = std::move(reader.value);
  return true;
}

bool is_same_number(const Value& returned, const Value& expected, double tolerance) {
  if (returned.kind == Value::kWhole && expected.kind == Value::kWhole && tolerance == 0) {
    return returned.text == expected.text || (returned.text == "-0" && expected.text == "0") ||
           (returned.text == "0" && expected.text == "-0");
  }
  double value = 0, wanted = 0;
  if (!read_number(returned.text, value) || !read_number(expected.text, wanted)) return false;
  return tolerance > 0 ? is_near(value, wanted, tolerance) : value == wanted;
}

bool is_same_value(const Value& returned, const Value& expected, double tolerance) {
  const auto is_number = [](const Value& value) {
    return value.kind == Value::kWhole || value.kind == Value::kReal;
  };
  if (is_number(returned) && is_number(expected)) {
    return is_same_number(returned, expected, tolerance);
  }
  if (returned.kind != expected.kind || returned.items.size() != expected.items.size() ||
      returned.members.size() != expected.members.size()) {
    return false;
  }
  for (size_t i = 0; i < returned.items.size(); ++i) {
    if (!is_same_value(returned.items[i], expected.items[i], tolerance)) return false;
  }
  for (const auto& [name, member] : returned.members) {
    const auto found = expected.members.find(name);
    if (found == expected.members.end() || !is_same_value(member, found->second, tolerance)) {
      return false;
    }
  }
  return returned.text == expected.text;
}

}  // namespace

bool is_same_output(std::string_view printed, std::string_view expected, OutputForm form,
                    double tolerance) {
  if (form == OutputForm::kExact) return printed == expected;
  if (form == OutputForm::kTokens) {
    return is_same_tokens(tokens_of(printed), tokens_of(expected), tolerance);
  }
  std::vector<Tokens> lines = lines_of(printed), wanted = lines_of(expected);
  std::sort(lines.begin(), lines.end());
  std::sort(wanted.begin(), wanted.end());
  return std::equal(
      lines.begin(), lines.end(), wanted.begin(), wanted.end(),
      [&](const Tokens& a, const Tokens& b) { return is_same_tokens(a, b, tolerance); });
}

bool is_same_json(std::string_view returned, std::string_view expected, double tolerance) {
  Value value, wanted;
  return read_value(returned, value) && read_value(expected, wanted) &&
         is_same_value(value, wanted, tolerance);
}

std::string only_element(std::string_view json) {
  const auto list = nlohmann::ordered_json::parse(json.begin(), json.end(), nullptr, false);
  return list.is_array() && list.size() == 1 ? list[0].dump() : "";
}

}  // namespace gradus::rewards::code
