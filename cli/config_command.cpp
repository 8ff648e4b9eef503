// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/run_config.h"
#include "common/metrics.h"

namespace gradus::cli {
namespace {

Status print_text(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return unavailable("standard output: cannot write; free some space or choose another place");
  }
  return {};
}

Status print_config(const ConfigArguments& arguments) {
  // The rules between fields are left to the dry run, so that a `base:` of other files prints as
  // well.
  Result<LoadedConfig<RunConfig>> loaded = read_run_config(arguments.path, arguments.overrides);
  if (!loaded.ok()) return loaded.status();
  return print_text(resolved_yaml(*loaded));
}

}  // namespace

std::shared_ptr<ConfigArguments> add_config_arguments(CLI::App& command) {
  auto arguments = std::make_shared<ConfigArguments>();
  command.add_option("CONFIG", arguments->path, "YAML file of the run (see docs/config.md)")
      ->required();
  command
      .add_option("--set", arguments->overrides,
                  "Set one value, e.g. --set trainer.num_steps=10; repeatable, the value is YAML")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  return arguments;
}

void add_config_command(CLI::App& app, Action& action) {
  CLI::App* config = app.add_subcommand("config", "Show a run's configuration or its reference");
  config->require_subcommand(1);

  CLI::App* print = config->add_subcommand(
      "print", "Print every value of a configuration and where it came from");
  const std::shared_ptr<ConfigArguments> arguments = add_config_arguments(*print);
  print->callback(
      [&action, arguments] { action = [arguments] { return print_config(*arguments); }; });

  CLI::App* docs = config->add_subcommand("docs", "Print docs/config.md");
  docs->callback([&action] { action = [] { return print_text(run_config_markdown()); }; });

  CLI::App* metrics = config->add_subcommand("metrics", "Print docs/metrics.md");
  metrics->callback([&action] { action = [] { return print_text(metrics_markdown()); }; });
}

}  // namespace gradus::cli
