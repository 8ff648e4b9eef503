// SPDX-License-Identifier: Apache-2.0
#include "common/check.h"

#include <fmt/format.h>

namespace gradus {

void throw_internal_error(const char* expression, const char* file, int line,
                          const std::string& message) {
  throw InternalError(
      fmt::format("{}:{}: check '{}' does not hold: {}; this is a bug in gradus, please report it",
                  file, line, expression, message));
}

}  // namespace gradus
