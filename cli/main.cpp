// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cli/command.h"
#include "comm/communicator.h"
#include "common/log.h"
#include "common/strings.h"

namespace {

constexpr int kExitUserError = 2;
constexpr int kExitInternalError = 70;

// Under mpirun a failing rank ends all. Ranks that agreed on an error each come here: rank 0 says
// it, the others give it the time to and speak only if it has nothing to say.
constexpr auto kWaitForRank0 = std::chrono::milliseconds(500);

int report(const gradus::Status& status) {
  if (status.ok()) {
    gradus::comm::finalize();
    return 0;
  }
  const int rank = gradus::comm::rank_for_messages();
  if (rank != 0) std::this_thread::sleep_for(kWaitForRank0);
  std::fflush(stdout);
  std::istringstream message(status.message());  // a configuration has a line for each problem
  for (std::string line; std::getline(message, line);)
    fmt::print(stderr, "gradus: error{}: {}\n",
               gradus::comm::is_launched_by_mpi() ? fmt::format(" (rank {})", rank) : "", line);
  const int code =
      status.code() == gradus::StatusCode::kInternal ? kExitInternalError : kExitUserError;
  gradus::flush_logs();
  gradus::comm::abort_all_ranks(code);
  return code;
}

// CLI11 says of a mistyped command only that one is required.
gradus::Status check_command(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return {};
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  if (std::find(names.begin(), names.end(), argv[1]) != names.end()) return {};
  return gradus::invalid_argument("unknown command '{}'{}; known: {}", argv[1],
                                  gradus::did_you_mean(argv[1], names), gradus::join(names, ", "));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Gradus: reinforcement learning of language models with verifiable rewards"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "gradus " GRADUS_VERSION);
  gradus::cli::Action action;
  // Commands are added here, in the order in which `gradus --help` lists them.
  gradus::cli::add_train_command(app, action);
  gradus::cli::add_sft_command(app, action);
  gradus::cli::add_preference_commands(app, action);
  gradus::cli::add_federate_command(app, action);
  gradus::cli::add_launch_command(app, action);
  gradus::cli::add_plan_command(app, action);
  gradus::cli::add_eval_command(app, action);
  gradus::cli::add_generate_command(app, action);
  gradus::cli::add_inspect_command(app, action);
  gradus::cli::add_logprobs_command(app, action);
  gradus::cli::add_score_command(app, action);
  gradus::cli::add_config_command(app, action);
  gradus::cli::add_template_command(app, action);
  gradus::cli::add_data_command(app, action);
  gradus::cli::add_reward_command(app, action);
  gradus::cli::add_sandbox_command(app, action);
  gradus::cli::add_tokenize_command(app, action);
  gradus::cli::add_index_command(app, action);
  gradus::cli::add_report_command(app, action);
  gradus::cli::add_convert_command(app, action);
  gradus::cli::add_merge_command(app, action);
  gradus::cli::add_bench_command(app, action);
  if (const gradus::Status known = check_command(app, argc, argv); !known.ok()) {
    return report(known);
  }
  // CLI11 knows options of one dash by one letter; -np is how mpirun has it.
  char np[] = "--np";
  for (int i = 2; i < argc && std::string(argv[1]) == "launch"; ++i) {
    if (std::string(argv[i]) == "-np") argv[i] = np;
    if (std::string(argv[i]) == "--") break;
  }
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
