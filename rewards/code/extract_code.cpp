// SPDX-License-Identifier: Apache-2.0
#include "rewards/code/extract_code.h"

#include <algorithm>
#include <string>

#include "common/strings.h"

namespace gradus::rewards::code {
namespace {

// Length of the fence that a line begins with, after at most three spaces; 0: none.
struct Fence {
  char mark = 0;
  size_t length = 0;
  std::string_view rest;  // what follows on the line, trimmed
};

Fence fence_of(std::string_view line) {
  size_t at = 0;
  while (at < 3 && at < line.size() && line[at] == ' ') ++at;
  Fence fence;
  if (at == line.size() || (line[at] != '`' && line[at] != '~')) return fence;
  fence.mark = line[at];
  while (at < line.size() && line[at] == fence.mark) {
    ++at;
    ++fence.length;
  }
  fence.rest = trim(line.substr(at));
  if (fence.length < 3) fence.length = 0;
  return fence;
}

bool is_language(std::string_view info, Language language) {
  std::string name;
  for (const char c : info.substr(0, info.find_first_of(" \t{"))) {
    name += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  if (language == Language::kPython) return name == "python" || name == "py" || name == "python3";
  return name == "cpp" || name == "c++" || name == "cc" || name == "cxx";
}

}  // namespace

std::optional<std::string_view> last_code_block(std::string_view response, Language language) {
  constexpr std::string_view kThink = "<think>", kEndThink = "</think>";
  const size_t end_think = response.rfind(kEndThink);
  if (end_think != std::string_view::npos) response.remove_prefix(end_think + kEndThink.size());
  if (response.find(kThink) != std::string_view::npos) return std::nullopt;

  std::optional<std::string_view> named, unnamed;
  Fence open;
  size_t content = 0;
  for (size_t begin = 0; begin < response.size();) {
    const size_t end = std::min(response.find('\n', begin), response.size());
    const Fence fence = fence_of(response.substr(begin, end - begin));
    if (open.length == 0 && fence.length > 0) {
      open = fence;
      content = std::min(end + 1, response.size());
    } else if (open.length > 0 && fence.mark == open.mark && fence.length >= open.length &&
               fence.rest.empty()) {
      const std::string_view block = response.substr(content, begin - content);
      if (is_language(open.rest, language)) named = block;
      if (open.rest.empty()) unnamed = block;
      open = {};
    }
    begin = end + 1;
  }
  return named.has_value() ? named : unnamed;
}

}  // namespace gradus::rewards::code
