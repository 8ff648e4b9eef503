// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "rewards/reward.h"

namespace gradus::rewards {

// Reads a reward's options: each read names one, finish() reports the first bad value or, failing
// that, an option that none of the reads named.
class OptionReader {
 public:
  OptionReader(std::string reward, const RewardOptions& options)
      : reward_(std::move(reward)), options_(options) {}

  void text(const char* name, std::string& value);
  void flag(const char* name, bool& value);  // true | false
  void number(const char* name, double low, double high, double& value);
  // `value` becomes the index of the choice.
  void choice(const char* name, const std::vector<std::string>& choices, int& value);
  // The message stands as if the option's own read had found it.
  void reject(const char* name, const std::string& expected);

  Status finish() const;

 private:
  // The option's text or null; remembers the name.
  const std::string* find(const char* name);

  std::string reward_;
  const RewardOptions& options_;
  std::vector<std::string> known_;
  Status status_;
};

}  // namespace gradus::rewards
