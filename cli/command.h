// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"

namespace CLI {
class App;
}

namespace gradus::cli {

// The subcommand that the command line chose, run by main after parsing; what it returns decides
// the exit code (0, 2 for a user's mistake, 70 for a bug of ours).
using Action = std::function<Status()>;

// Each command is one file, cli/<name>_command.cpp, with one such function: it adds the subcommand
// and its options to `app` and, when the subcommand is chosen, sets `action`.
void add_bench_command(CLI::App& app, Action& action);
void add_config_command(CLI::App& app, Action& action);
void add_eval_command(CLI::App& app, Action& action);
void add_federate_command(CLI::App& app, Action& action);
void add_deployment_commands(CLI::App& federate, Action& action);  // serve, join, keygen
void add_generate_command(CLI::App& app, Action& action);
void add_launch_command(CLI::App& app, Action& action);
void add_index_command(CLI::App& app, Action& action);
void add_inspect_command(CLI::App& app, Action& action);
void add_logprobs_command(CLI::App& app, Action& action);
void add_plan_command(CLI::App& app, Action& action);
void add_sft_command(CLI::App& app, Action& action);
void add_preference_commands(CLI::App& app, Action& action);  // dpo and reward-model
void add_score_command(CLI::App& app, Action& action);
void add_train_command(CLI::App& app, Action& action);
void add_template_command(CLI::App& app, Action& action);
void add_report_command(CLI::App& app, Action& action);
void add_data_command(CLI::App& app, Action& action);
void add_reward_command(CLI::App& app, Action& action);
void add_sandbox_command(CLI::App& app, Action& action);
void add_tokenize_command(CLI::App& app, Action& action);
void add_convert_command(CLI::App& app, Action& action);
void add_merge_command(CLI::App& app, Action& action);

// The arguments of commands that take a run's YAML: CONFIG and any number of `--set KEY=VALUE`,
// which load_run_config reads. Filled when the command line is parsed.
struct ConfigArguments {
  std::string path;
  std::vector<std::string> overrides;
};
std::shared_ptr<ConfigArguments> add_config_arguments(CLI::App& command);

}  // namespace gradus::cli
