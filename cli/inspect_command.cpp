// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>

#include "cli/command.h"
#include "cli/inspect_loss.h"
#include "cli/inspect_retrieval.h"

namespace gradus::cli {
namespace {

struct InspectOptions {
  std::string algorithm = "grpo";
  std::vector<std::string> overrides;
  std::string input = "-";
};

Result<std::string> read_input(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
    return text.str();
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return not_found("{}: cannot open: {}", path, std::strerror(errno));
  text << file.rdbuf();
  return text.str();
}

std::string input_name(const std::string& path) { return path == "-" ? "standard input" : path; }

Status print_answer(const Result<std::string>& answer) {
  if (!answer.ok()) return answer.status();
  if (std::fputs((*answer + "\n").c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return unavailable("standard output: cannot write; free some space or choose another place");
  }
  return {};
}

Status inspect_loss_of(const InspectOptions& options) {
  const Result<trainer::TrainerConfig> config =
      inspected_config(options.algorithm, options.overrides);
  if (!config.ok()) return config.status();
  const Result<std::string> batch = read_input(options.input);
  if (!batch.ok()) return batch.status();
  return print_answer(inspect_loss(*config, *batch, input_name(options.input)));
}

Status inspect_retrieval_of(const std::string& path) {
  const Result<std::string> text = read_input(path);
  if (!text.ok()) return text.status();
  return print_answer(inspect_retrieval(*text, input_name(path)));
}

}  // namespace

void add_inspect_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("inspect", "Look at what a part of a run computes");
  command->require_subcommand(1);
  CLI::App* loss = command->add_subcommand(
      "loss", "Advantages, loss and gradient of a batch of log-probs (docs/algorithms.md)");
  auto options = std::make_shared<InspectOptions>();
  loss->add_option("--algorithm", options->algorithm, "Preset, as trainer.algorithm.name")
      ->capture_default_str();
  loss->add_option("--set", options->overrides,
                   "Set a key of trainer.algorithm, e.g. --set clip_low=0.1; repeatable")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  loss->add_option("--input", options->input, "JSON file to read; - is standard input")
      ->capture_default_str();
  loss->callback([options, &action] { action = [options] { return inspect_loss_of(*options); }; });
  CLI::App* retrieval = command->add_subcommand(
      "retrieval", "Log-probability and gradient of a ranked list, or draws (docs/retrieval.md)");
  auto input = std::make_shared<std::string>("-");
  retrieval->add_option("--input", *input, "JSON file to read; - is standard input")
      ->capture_default_str();
  retrieval->callback(
      [input, &action] { action = [input] { return inspect_retrieval_of(*input); }; });
}

}  // namespace gradus::cli
