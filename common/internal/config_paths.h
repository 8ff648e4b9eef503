// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/config/bind.h"
#include "common/internal/yaml_tree.h"

namespace gradus::internal {

// "section.name", or "name" at the top level.
std::string child_path(const std::string& section, const std::string& name);

// Reports the fields that must not be empty but are, at the place of the section that lacks them
// (of the file `path` itself if it does not mention the section).
void report_missing(const VisitFields& visit, const std::string& path, const ConfigOrigins& origins,
                    std::vector<ConfigProblem>& problems);

}  // namespace gradus::internal
