// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "rollout/tool.h"

namespace gradus::rollout {

Result<std::unique_ptr<Tool>> make_calculator(const ToolConfig& config);
// Unavailable if the machine cannot confine programs.
Result<std::unique_ptr<Tool>> make_python(const ToolConfig& config);
// With `url` a retrieval server is asked, which is not called yet; else opens the index.
Result<std::unique_ptr<Tool>> make_search(const ToolConfig& config);

}  // namespace gradus::rollout
