// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cli/command.h"

namespace gradus::cli {

// explain, check, probe and rubric, below `gradus reward`.
void add_reward_tool_commands(CLI::App& parent, Action& action);

}  // namespace gradus::cli
