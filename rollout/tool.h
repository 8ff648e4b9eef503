// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

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

// Where a call stands in a run: what a reply may depend on beside the call's text.
struct CallContext {
  uint64_t key = 0;      // of the response: RolloutRequest::rng_key
  int64_t number = 0;    // calls that the response made before
  std::string prompt{};  // decoded, without special tokens
  std::vector<std::string>
      notes{};  // what was written after each observation, before the next call
};

// Something that a response can call: the model writes <tag>TEXT</tag>, and what the tool says
// comes back into the response (docs/tools.md). A reply must be a function of text and context
// alone, or a run cannot be repeated bit for bit.
class Tool {
 public:
  virtual ~Tool() = default;
  // `text` is not empty and has no space at its ends. Thread-safe; gives up with kTimeout when
  // `seconds` have passed.
  virtual ToolReply call(std::string_view text, double seconds) const = 0;
  // The same for a tool that looks at the context; call() is what others are asked.
  virtual ToolReply call_in(const CallContext& context, std::string_view text,
                            double seconds) const {
    static_cast<void>(context);
    return call(text, seconds);
  }
};

using ToolRegistry = Registry<Tool, const ToolConfig&>;

// search, calculator, python.
void register_builtin_tools(ToolRegistry& registry);

}  // namespace gradus::rollout
