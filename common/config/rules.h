// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "common/status.h"
#include "common/strings.h"

namespace gradus {

// Collects the broken rules of a configuration, so that all are reported at once.
class ConfigRules {
 public:
  // Unless `holds`, adds the message, which names every key involved.
  template <class... Args>
  void require(bool holds, fmt::format_string<Args...> format, Args&&... args) {
    if (!holds) problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  // Adds what another check found.
  void add(const Status& status) {
    if (!status.ok()) problems_.push_back(status.message());
  }

  // Ok, or InvalidArgument with one problem a line.
  Status status() const {
    if (problems_.empty()) return {};
    return {StatusCode::kInvalidArgument, join(problems_, "\n")};
  }

 private:
  std::vector<std::string> problems_;
};

}  // namespace gradus
