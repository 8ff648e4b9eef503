// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "data/types.h"

namespace gradus::cli {

// A response that earns nothing from a sound check: what policies find when a check has a hole.
struct RewardProbe {
  std::string name;
  std::string response;
};

// The probes for one prompt with its ground truth; those that hide the ground truth need one.
std::vector<RewardProbe> reward_probes(const data::Prompt& prompt);

}  // namespace gradus::cli
