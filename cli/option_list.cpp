// SPDX-License-Identifier: Apache-2.0
#include "cli/option_list.h"

namespace gradus::cli {

Result<std::map<std::string, std::string>> parse_option_list(
    const std::string& flag, const std::vector<std::string>& entries) {
  std::map<std::string, std::string> options;
  for (const std::string& entry : entries) {
    const size_t equals = entry.find('=');
    if (equals == std::string::npos || equals == 0) {
      return invalid_argument("{} {}: expected name=value", flag, entry);
    }
    if (!options.emplace(entry.substr(0, equals), entry.substr(equals + 1)).second) {
      return invalid_argument("{} {}: the name came before; give each once", flag, entry);
    }
  }
  return options;
}

}  // namespace gradus::cli
