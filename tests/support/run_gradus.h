// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "tests/support/command.h"

namespace gradus::test {

using Outcome = CommandOutcome;

// Runs the built binary; `arguments` go through the shell, so standard error is in the output only
// with "2>&1", and input comes by "< FILE".
inline Outcome run_gradus(const std::string& arguments) {
  return run_command(std::string(GRADUS_BINARY) + " " + arguments);
}

}  // namespace gradus::test
