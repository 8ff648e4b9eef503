// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "common/registry.h"
#include "common/status.h"
#include "data/types.h"
#include "rollout/rollout_config.h"

namespace gradus::rollout {

// What a tool says to a call. In each case the text is for the model to read.
struct ToolReply {
  data::ToolStatus status = data::ToolStatus::kOk;
  std::string text;
};

// Something that a response can call: the model writes <tag>TEXT</tag>, and what the tool says
// comes back into the response (docs/tools.md). A reply must be a function of the text alone, or a
// run cannot be repeated bit for bit.
class Tool {
 public:
  virtual ~Tool() = default;
  // `text` is not empty and has no space at its ends. Thread-safe; gives up with kTimeout when
  // `seconds` have passed.
  virtual ToolReply call(std::string_view text, double seconds) const = 0;
};

using ToolRegistry = Registry<Tool, const ToolConfig&>;

// search, calculator, python.
void register_builtin_tools(ToolRegistry& registry);

}  // namespace gradus::rollout
