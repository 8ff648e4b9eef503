// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/inspect_aggregation.h"
#include "cli/inspect_loss.h"
#include "cli/inspect_privacy.h"
#include "cli/inspect_retrieval.h"
#include "cli/json_input.h"

namespace gradus::cli {
namespace {

struct InspectOptions {
  std::string algorithm = "grpo";   // of loss
  std::string strategy = "fedavg";  // of aggregation
  std::vector<std::string> overrides;
  std::string input = "-";
};

Status print_answer(const Result<std::string>& answer) {
  if (!answer.ok()) return answer.status();
  if (std::fputs((*answer + "\n").c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return unavailable("standard output: cannot write; free some space or choose another place");
  }
  return {};
}

Status inspect_clients(const InspectOptions& options) {
  const Result<InspectedAggregation> config =
      inspected_aggregation(options.strategy, options.overrides);
  if (!config.ok()) return config.status();
  const Result<std::string> clients = read_input(options.input);
  if (!clients.ok()) return clients.status();
  return print_answer(inspect_aggregation(*config, *clients, input_name(options.input)));
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

void add_privacy(CLI::App& command, Action& action) {
  CLI::App* part = command.add_subcommand(
      "privacy", "Epsilon of a run with noise, or the noise for an epsilon (docs/privacy.md)");
  auto question = std::make_shared<PrivacyQuestion>();
  auto& run = question->run;
  CLI::Option* noise = part->add_option("--noise-multiplier", run.noise_multiplier,
                                        "Standard deviation of the noise in clipping norms");
  CLI::Option* epsilon =
      part->add_option("--epsilon", question->epsilon, "Find the noise for this epsilon instead");
  noise->excludes(epsilon);
  part->add_option("--sampling-rate", run.sampling_rate, "Share of all clients in a round")
      ->required();
  part->add_option("--rounds", run.num_rounds, "Rounds of the run")->required();
  part->add_option("--delta", question->delta, "Below one over the number of clients")->required();
  auto sampling = std::make_shared<std::string>("poisson");
  part->add_option("--sampling", *sampling, "poisson: each client by itself; fixed: always as many")
      ->check(CLI::IsMember({"poisson", "fixed"}))
      ->capture_default_str();
  part->callback([question, sampling, noise, epsilon, &action] {
    if (noise->count() + epsilon->count() == 0) {
      throw CLI::RequiredError("--noise-multiplier or --epsilon");
    }
    if (*sampling == "fixed") question->run.sampling = privacy::Sampling::kFixedSize;
    action = [question] { return print_answer(inspect_privacy(*question)); };
  });
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
  CLI::App* aggregation = command->add_subcommand(
      "aggregation", "Weights of clients and the server's step for one round (docs/federated.md)");
  aggregation->add_option("--strategy", options->strategy, "Strategy, as federated.strategy.name")
      ->capture_default_str();
  for (CLI::App* part : {loss, aggregation}) {
    part->add_option("--set", options->overrides,
                     part == loss ? "Set a key of trainer.algorithm, e.g. --set clip_low=0.1; "
                                    "repeatable"
                                  : "Set a key of federated.strategy, e.g. --set alpha=0.5, or "
                                    "client_lr, client_momentum, num_clients; repeatable")
        ->type_name("KEY=VALUE")
        ->allow_extra_args(false);
    part->add_option("--input", options->input, "JSON file to read; - is standard input")
        ->capture_default_str();
  }
  loss->callback([options, &action] { action = [options] { return inspect_loss_of(*options); }; });
  aggregation->callback(
      [options, &action] { action = [options] { return inspect_clients(*options); }; });
  CLI::App* retrieval = command->add_subcommand(
      "retrieval", "Log-probability and gradient of a ranked list, or draws (docs/retrieval.md)");
  auto input = std::make_shared<std::string>("-");
  retrieval->add_option("--input", *input, "JSON file to read; - is standard input")
      ->capture_default_str();
  retrieval->callback(
      [input, &action] { action = [input] { return inspect_retrieval_of(*input); }; });
  add_privacy(*command, action);
}

}  // namespace gradus::cli
