// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/options.h"

#include <algorithm>
#include <charconv>

#include "common/strings.h"

namespace gradus::rewards {

const std::string* OptionReader::find(const char* name) {
  known_.emplace_back(name);
  const auto found = options_.find(name);
  return found == options_.end() ? nullptr : &found->second;
}

void OptionReader::reject(const char* name, const std::string& expected) {
  if (!status_.ok()) return;
  status_ = invalid_argument("reward {}: {}: is '{}'; expected {}", reward_, name,
                             options_.find(name)->second, expected);
}

void OptionReader::text(const char* name, std::string& value) {
  if (const std::string* text = find(name)) value = *text;
}

void OptionReader::flag(const char* name, bool& value) {
  const std::string* text = find(name);
  if (text == nullptr) return;
  if (*text != "true" && *text != "false") return reject(name, "true or false");
  value = *text == "true";
}

void OptionReader::number(const char* name, double low, double high, double& value) {
  const std::string* text = find(name);
  if (text == nullptr) return;
  double number = 0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, number);
  if (error != std::errc() || stop != end || !(number >= low && number <= high)) {
    return reject(name, fmt::format("a number in [{}, {}]", low, high));
  }
  value = number;
}

void OptionReader::choice(const char* name, const std::vector<std::string>& choices, int& value) {
  const std::string* text = find(name);
  if (text == nullptr) return;
  const auto found = std::find(choices.begin(), choices.end(), *text);
  if (found == choices.end()) return reject(name, "one of: " + join(choices, ", "));
  value = static_cast<int>(found - choices.begin());
}

Status OptionReader::finish() const {
  for (const auto& [name, value] : options_) {
    if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
    return invalid_argument("reward {}: unknown option '{}'{}; known: {}", reward_, name,
                            did_you_mean(name, known_), join(known_, ", "));
  }
  return status_;
}

}  // namespace gradus::rewards
