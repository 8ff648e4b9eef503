// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/status.h"

namespace gradus::cli {

// "name=value" entries of a repeated command line option as a map; the value may hold further equal
// signs. InvalidArgument for an entry without one and for a name that comes twice; `flag` is what
// to call it.
Result<std::map<std::string, std::string>> parse_option_list(
    const std::string& flag, const std::vector<std::string>& entries);

}  // namespace gradus::cli
