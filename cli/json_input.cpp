// SPDX-License-Identifier: Apache-2.0
#include "cli/json_input.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>

namespace gradus::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string quote_nonfinite(const std::string& text) {
  std::string result;
  bool is_in_text = false;
  for (size_t i = 0; i < text.size();) {
    if (text[i] == '"' && (i == 0 || text[i - 1] != '\\')) is_in_text = !is_in_text;
    size_t length = 0;
    for (const std::string_view word : {"NaN", "-Infinity", "Infinity"}) {
      if (!is_in_text && text.compare(i, word.size(), word) == 0) length = word.size();
      if (length > 0) break;
    }
    result += length > 0 ? '"' + text.substr(i, length) + '"' : std::string(1, text[i]);
    i += std::max<size_t>(length, 1);
  }
  return result;
}

}  // namespace

Result<std::string> read_input(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
    return text.str();
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return not_found("{}: cannot open: {}", path, std::strerror(errno));
  text << file.rdbuf();
  return text.str();
}

std::string input_name(const std::string& path) { return path == "-" ? "standard input" : path; }

Result<Json> parse_input(const std::string& text, const std::string& where) {
  try {
    return Json::parse(quote_nonfinite(text));
  } catch (const nlohmann::json::exception& error) {
    return invalid_argument("{}: not JSON: {}", where, error.what());
  }
}

std::string shown(const Json& value) {
  std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  return text.size() > 60 ? text.substr(0, 60) + "..." : text;
}

Result<double> finite_number(const Json& value, const std::string& where) {
  if (value.is_number() && std::isfinite(value.get<double>())) return value.get<double>();
  return invalid_argument("{} is {}; it must be a finite number", where, shown(value));
}

}  // namespace gradus::cli
