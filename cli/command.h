// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "common/status.h"

namespace CLI {
class App;
}

namespace gradus::cli {

// The subcommand that the command line chose, run by main after parsing; what it returns decides the exit
// code (0, 2 for a user's mistake, 70 for a bug of ours).
using Action = std::function<Status()>;

// Each command is one file, cli/<name>_command.cpp, with one such function: it adds the subcommand and its
// options to `app` and, when the subcommand is chosen, sets `action`.
void add_tokenize_command(CLI::App& app, Action& action);

}  // namespace gradus::cli
