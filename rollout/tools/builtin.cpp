// SPDX-License-Identifier: Apache-2.0
#include "rollout/tools/builtin.h"

namespace gradus::rollout {

void register_builtin_tools(ToolRegistry& registry) {
  registry.add("calculator", make_calculator);
  registry.add("python", make_python);
  registry.add("search", make_search);
}

}  // namespace gradus::rollout
