// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <sstream>
#include <string>

#include "cli/command.h"

namespace {

constexpr int kExitUserError = 2;
constexpr int kExitInternalError = 70;

int report(const gradus::Status& status) {
  if (status.ok()) return 0;
  std::fflush(stdout);
  std::istringstream message(status.message());  // a configuration has a line for each problem
  for (std::string line; std::getline(message, line);)
    fmt::print(stderr, "gradus: error: {}\n", line);
  return status.code() == gradus::StatusCode::kInternal ? kExitInternalError : kExitUserError;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Gradus: reinforcement learning of language models with verifiable rewards"};
  app.require_subcommand(1);
  gradus::cli::Action action;
  // Commands are added here, in the order in which `gradus --help` lists them.
  gradus::cli::add_config_command(app, action);
  gradus::cli::add_template_command(app, action);
  gradus::cli::add_data_command(app, action);
  gradus::cli::add_reward_command(app, action);
  gradus::cli::add_tokenize_command(app, action);
  gradus::cli::add_report_command(app, action);
  gradus::cli::add_convert_command(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUserError;
  }
  try {
    return report(action());
  } catch (const std::exception& error) {
    return report(gradus::Status(gradus::StatusCode::kInternal, error.what()));
  }
}
