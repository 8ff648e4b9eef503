// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <optional>

#include "cli/command.h"
#include "cli/run_command.h"
#include "cli/run_setup.h"
#include "common/parallel.h"
#include "federated/simulation.h"
#include "records/signals.h"

namespace gradus::cli {
namespace {

using federated::FederatedConfig;

constexpr char kStateFile[] = "federated.bin";    // of a checkpoint
constexpr char kClientsFile[] = "client_states";  // of the run

// Bytes of a rank at its peak.
std::vector<MemoryPart> plan_federation(const FederatedConfig& plan,
                                        const federated::LocalTask& task, int num_ranks) {
  constexpr int64_t kProcessBytes = 16ll << 20;  // program, rows, metrics
  const int64_t vector = task.num_parameters() * static_cast<int64_t>(sizeof(float));
  const int64_t per_rank = (plan.clients.per_round + num_ranks - 1) / num_ranks;
  const auto strategy = federated::make_aggregator(
      plan.strategy, {.num_parameters = 1, .num_clients = task.num_clients()});
  const int64_t vectors = strategy.ok() ? (*strategy)->num_vectors() : 1;
  std::vector<MemoryPart> parts = {
      {"program and data", kProcessBytes},
      {"model and the server's step", 4 * vector},
      {"updates of a round", per_rank * vectors * vector},
      {fmt::format("clients on {} threads", num_threads()), 4 * vector * num_threads()}};
  if (plan.mode == federated::FederatedMode::kAsync) {
    parts.push_back({"older models, at most", plan.concurrency * vector});
  }
  return parts;
}

void print_plan(const RunConfig& config, const federated::LocalTask& task, int num_ranks) {
  const FederatedConfig& plan = config.federated;
  int64_t least = task.num_samples(0), most = least;
  for (int64_t k = 1; k < std::min<int64_t>(task.num_clients(), 10000); ++k) {
    least = std::min(least, task.num_samples(k));
    most = std::max(most, task.num_samples(k));
  }
  fmt::print("model      {} weights\n", task.num_parameters());
  fmt::print("clients    {} of {} to {} rows, {} a round\n", task.num_clients(), least, most,
             plan.clients.per_round);
  fmt::print("run        {} rounds of {} into {}\nmemory\n", plan.num_rounds, plan.strategy.name,
             run_folder_of(config));
  print_memory(plan_federation(plan, task, num_ranks));
  fmt::print("the configuration is sound; nothing was trained (--dry-run)\n");
}

// The run's loop: rounds, evaluation, records, checkpoints.
class FederatedRun {
 public:
  FederatedRun(const RunConfig& config, federated::Simulation& simulation, OpenedRun& run,
               comm::Communicator& ranks, records::RunDisplay& display)
      : config_(config), simulation_(simulation), run_(run), ranks_(ranks), display_(display) {}

  Status go() {
    const FederatedConfig& plan = config_.federated;
    while (simulation_.round() < plan.num_rounds && !is_stopped_) {
      if (simulation_.is_budget_spent()) {
        display_.print(
            fmt::format("stopped after {} rounds: another one would exceed "
                        "federated.privacy.max_epsilon ({})",
                        simulation_.round(), plan.privacy.max_epsilon));
        break;
      }
      Metrics metrics;
      GRADUS_RETURN_IF_ERROR(simulation_.run_round(metrics));
      const int64_t step = simulation_.round();
      ranks_.watch().set_step(step);
      const bool is_last = step == plan.num_rounds || simulation_.is_budget_spent();
      if (step % plan.eval_every == 0 || is_last) evaluate(metrics);
      const Status written =
          ranks_.rank() == 0 ? run_.metrics->write(step, metrics.values()) : Status();
      GRADUS_RETURN_IF_ERROR(ranks_.size() == 1 ? written : comm::agree(ranks_, written));
      display_.finish_step(step, metrics.values());
      is_stopped_ = wants_stop();
      const int64_t every = config_.run.checkpoint_every;
      if (is_last || is_stopped_ || (every > 0 && step % every == 0)) {
        GRADUS_RETURN_IF_ERROR(checkpoint());
      }
    }
    return {};
  }

  bool is_stopped() const { return is_stopped_; }
  // Of the last evaluation, if there was one.
  std::optional<double> accuracy() const { return accuracy_; }

 private:
  void evaluate(Metrics& metrics) {
    if (ranks_.rank() != 0) return;
    federated::Evaluation evaluation;
    if (!simulation_.evaluate(evaluation)) return;
    accuracy_ = evaluation.accuracy;
    metrics.set("federated/accuracy", evaluation.accuracy);
    metrics.set("federated/test_loss", evaluation.loss);
  }

  // Ranks see signals at different moments: any of them stops all.
  bool wants_stop() const {
    const double mine = records::stop_requested() ? 1 : 0;
    if (ranks_.size() == 1) return mine > 0;
    return comm::all_reduce_sum(ranks_, std::span(&mine, 1))[0] > 0;
  }

  Status checkpoint() {
    const auto write = [&]() -> Status {
      Result<records::CheckpointDraft> draft = run_.checkpoints->begin(
          simulation_.round(), static_cast<int64_t>(simulation_.model().size_bytes()));
      if (!draft.ok()) return draft.status();
      GRADUS_RETURN_IF_ERROR(simulation_.save(draft->folder() + "/" + kStateFile));
      GRADUS_RETURN_IF_ERROR(run_.metrics->sync());
      return run_.checkpoints->commit(std::move(*draft), accuracy_);
    };
    GRADUS_RETURN_IF_ERROR(comm::agree(ranks_, ranks_.rank() == 0 ? write() : Status()));
    simulation_.start_interval();
    return {};
  }

  const RunConfig& config_;
  federated::Simulation& simulation_;
  OpenedRun& run_;
  comm::Communicator& ranks_;
  records::RunDisplay& display_;
  std::optional<double> accuracy_;
  bool is_stopped_ = false;
};

Status federate(const RunArguments& arguments) {
  Result<std::unique_ptr<comm::Communicator>> communicator = start_ranks();
  if (!communicator.ok()) return communicator.status();
  comm::Communicator& ranks = **communicator;
  Result<LoadedConfig<RunConfig>> loaded = load_run_config(
      arguments.config->path, arguments.config->overrides, RunKind::kFederate, ranks.size());
  if (!loaded.ok()) return loaded.status();
  const RunConfig& config = loaded->value;
  const auto watchdog = watch_ranks(ranks, config.cluster, ranks.size());
  if (!watchdog.ok()) return watchdog.status();
  const auto seed = static_cast<uint64_t>(config.run.seed);
  const Result<std::unique_ptr<federated::LocalTask>> task =
      federated::make_local_task(config.federated, seed);
  if (!task.ok()) return task.status();
  if (arguments.dry_run) {
    if (ranks.rank() == 0) print_plan(config, **task, ranks.size());
    return {};
  }
  Result<OpenedRun> run = open_run(*loaded, arguments.resume, ranks);
  if (!run.ok()) return run.status();
  const std::string clients = run_folder_of(config) + "/" + kClientsFile;
  const bool is_resumed = !run->resume_from.empty();
  Result<std::unique_ptr<federated::Simulation>> simulation =
      federated::Simulation::make(config.federated, seed, **task, ranks, clients, is_resumed);
  if (!simulation.ok()) return simulation.status();
  if (is_resumed) {
    GRADUS_RETURN_IF_ERROR(
        comm::agree(ranks, (*simulation)->load(run->resume_from + "/" + kStateFile, clients)));
    (*simulation)->start_interval();
  }
  records::RunDisplay display({.num_steps = config.federated.num_rounds,
                               .first_step = run->resume_step + 1,
                               .columns = records::federated_columns(),
                               .is_quiet = ranks.rank() != 0});
  display.print(fmt::format("{}: {}, {} weights, {} clients, {}", config.run.name,
                            config.federated.strategy.name, (*task)->num_parameters(),
                            (*task)->num_clients(), ranks_text(ranks)));
  if (is_resumed) {
    display.print(
        fmt::format("resumed from {} after round {}", run->resume_from, run->resume_step));
  }
  FederatedRun loop(config, **simulation, *run, ranks, display);
  GRADUS_RETURN_IF_ERROR(loop.go());
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const std::string accuracy =
      loop.accuracy() ? fmt::format("accuracy {:.4f}", *loop.accuracy()) : "no evaluation";
  display.print(fmt::format("{} after {} rounds, {:.1f} simulated seconds; peak memory {} MiB",
                            accuracy, (*simulation)->round(), (*simulation)->clock_s(),
                            usage.ru_maxrss / 1024));
  display.print(fmt::format("{0}{1}, its model in {1}/checkpoints/latest", kEndMessage,
                            run_folder_of(config)));
  return {};
}

}  // namespace

void add_federate_command(CLI::App& app, Action& action) {
  auto arguments = add_run_command(app, action, "federate",
                                   "Federated learning with simulated clients, or with clients on "
                                   "other machines (docs/federated.md)",
                                   federate);
  CLI::App* command = app.get_subcommand("federate");
  add_deployment_commands(*command, action);
  // One of serve, join and keygen stands in the place of a simulation's configuration. This runs
  // after the callback of the command below.
  command->get_option("CONFIG")->required(false);
  command->callback([&action, command, arguments] {
    if (!command->get_subcommands().empty()) return;
    action = [arguments]() -> Status {
      if (arguments->config->path.empty()) {
        return invalid_argument(
            "gradus federate: CONFIG is required; name the YAML file of a simulation, or one of "
            "serve, join, keygen");
      }
      return federate(*arguments);
    };
  });
}

}  // namespace gradus::cli
