// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>

#include "cli/command.h"
#include "cli/run_setup.h"
#include "common/atomic_file.h"
#include "common/log.h"
#include "federated/deployment.h"
#include "records/signals.h"

// `gradus federate serve`, `join` and `keygen`: clients in processes of their own.
namespace gradus::cli {
namespace {

constexpr char kStateFile[] = "federated.bin";  // of a checkpoint
constexpr char kPublicSuffix[] = ".pub";

struct ServeArguments {
  std::shared_ptr<ConfigArguments> config;
  std::string listen = "127.0.0.1:7143", key, clients;
  bool resume = false;
};

struct JoinArguments {
  std::shared_ptr<ConfigArguments> config;
  std::string server, key, server_key, state;
  int64_t client = 0;
};

std::string peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return fmt::format("peak memory {} MiB", usage.ru_maxrss / 1024);
}

Status serve(const ServeArguments& arguments) {
  Result<std::unique_ptr<comm::Communicator>> communicator = start_ranks();
  if (!communicator.ok()) return communicator.status();
  if ((*communicator)->size() > 1) {
    return invalid_argument("gradus federate serve is one process; start it without mpirun");
  }
  Result<LoadedConfig<RunConfig>> loaded =
      load_run_config(arguments.config->path, arguments.config->overrides, RunKind::kFederate);
  if (!loaded.ok()) return loaded.status();
  const RunConfig& config = loaded->value;
  GRADUS_RETURN_IF_ERROR(federated::validate_deployment(config.federated));
  const Result<federated::Identity> identity = federated::Identity::load(arguments.key);
  if (!identity.ok()) return identity.status();
  Result<std::vector<federated::PublicKey>> keys = federated::read_public_keys(arguments.clients);
  if (!keys.ok()) return keys.status();
  const auto seed = static_cast<uint64_t>(config.run.seed);
  const Result<std::unique_ptr<federated::LocalTask>> task =
      federated::make_local_task(config.federated, seed);
  if (!task.ok()) return task.status();
  const Result<std::unique_ptr<federated::DeploymentServer>> server =
      federated::DeploymentServer::make(config.federated, seed, **task, *identity, std::move(*keys),
                                        arguments.listen);
  if (!server.ok()) return server.status().with_prefix(arguments.clients);
  Result<OpenedRun> run = open_run(*loaded, arguments.resume, **communicator);
  if (!run.ok()) return run.status();
  if (!run->resume_from.empty()) {
    GRADUS_RETURN_IF_ERROR((*server)->load(run->resume_from + "/" + kStateFile));
  }
  const int64_t num_rounds = config.federated.num_rounds;
  records::RunDisplay display({.num_steps = num_rounds,
                               .first_step = (*server)->round() + 1,
                               .columns = records::federated_columns()});
  display.print(fmt::format("{}: {}, {} weights, {} clients; listening on {}:{} as {}",
                            config.run.name, config.federated.strategy.name,
                            (*task)->num_parameters(), (*task)->num_clients(),
                            arguments.listen.substr(0, arguments.listen.rfind(':')),
                            (*server)->port(), to_text(identity->public_key())));
  if (!run->resume_from.empty()) {
    display.print(
        fmt::format("resumed from {} after round {}", run->resume_from, (*server)->round()));
  }
  std::optional<double> accuracy;
  const Status ended = (*server)->run({
      .save = [&](int64_t round,
                  const std::function<Status(const std::string&)>& write) -> Result<std::string> {
        Result<records::CheckpointDraft> draft =
            run->checkpoints->begin(round, 4 * (*task)->num_parameters());
        if (!draft.ok()) return draft.status();
        GRADUS_RETURN_IF_ERROR(write(draft->folder() + "/" + kStateFile));
        GRADUS_RETURN_IF_ERROR(run->metrics->sync());
        GRADUS_RETURN_IF_ERROR(run->checkpoints->commit(std::move(*draft), accuracy));
        return fmt::format("{}/checkpoints/step_{}/{}", run_folder_of(config), round, kStateFile);
      },
      .on_round = [&](int64_t round, std::span<const float> model, Metrics& metrics) -> Status {
        federated::Evaluation evaluation;
        if ((round % config.federated.eval_every == 0 || round == num_rounds) &&
            (*task)->evaluate(model, evaluation)) {
          accuracy = evaluation.accuracy;
          metrics.set("federated/accuracy", evaluation.accuracy);
          metrics.set("federated/test_loss", evaluation.loss);
        }
        GRADUS_RETURN_IF_ERROR(run->metrics->write(round, metrics.values()));
        display.finish_step(round, metrics.values());
        return {};
      },
      .say = [&](const std::string& message) { display.print(message); },
      .is_stopped = [] { return records::stop_requested(); },
  });
  GRADUS_RETURN_IF_ERROR(ended);
  const std::string last = accuracy ? fmt::format("accuracy {:.4f}", *accuracy) : "no evaluation";
  display.print(fmt::format("{} after {} rounds; {}", last, (*server)->round(), peak_memory()));
  display.print(fmt::format("{0}{1}, its model in {1}/checkpoints/latest", kEndMessage,
                            run_folder_of(config)));
  return {};
}

// A key itself, or the file that keygen wrote.
Result<federated::PublicKey> server_key_of(const std::string& text) {
  if (!std::filesystem::exists(text)) {
    const Result<federated::PublicKey> key = federated::parse_public_key(text);
    return key.ok() ? key : key.status().with_prefix("--server-key");
  }
  const Result<std::vector<federated::PublicKey>> keys = federated::read_public_keys(text);
  if (!keys.ok()) return keys.status();
  if (keys->size() != 1) {
    return invalid_argument("{}: {} keys; expected that of the server alone", text, keys->size());
  }
  return (*keys)[0];
}

Status join_run(const JoinArguments& arguments) {
  Result<LoadedConfig<RunConfig>> loaded =
      load_run_config(arguments.config->path, arguments.config->overrides, RunKind::kFederate);
  if (!loaded.ok()) return loaded.status();
  const RunConfig& config = loaded->value;
  GRADUS_RETURN_IF_ERROR(federated::validate_deployment(config.federated));
  GRADUS_RETURN_IF_ERROR(configure_logging({0, config.run.log_level, ""}));
  const Result<federated::Identity> identity = federated::Identity::load(arguments.key);
  if (!identity.ok()) return identity.status();
  const Result<federated::PublicKey> server = server_key_of(arguments.server_key);
  if (!server.ok()) return server.status();
  const auto seed = static_cast<uint64_t>(config.run.seed);
  const Result<std::unique_ptr<federated::LocalTask>> task =
      federated::make_local_task(config.federated, seed);
  if (!task.ok()) return task.status();
  records::install_stop_signals();
  std::string state = arguments.state;
  if (state.empty()) {
    state = fmt::format("{}_client_{}.bin", run_folder_of(config), arguments.client);
  }
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(state).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error) return unavailable("{}: {}", folder.string(), error.message());
  return federated::run_client(
      config.federated, seed, **task, *identity,
      {.client_id = arguments.client,
       .server = arguments.server,
       .server_key = *server,
       .state_path = state,
       .say = [](const std::string& message) { fmt::print(stderr, "{}\n", message); },
       .is_stopped = [] { return records::stop_requested(); }});
}

Status make_key(const std::string& path) {
  const federated::Identity identity = federated::Identity::fresh();
  GRADUS_RETURN_IF_ERROR(identity.save(path));
  const std::string line = to_text(identity.public_key());
  GRADUS_RETURN_IF_ERROR(write_file_atomically(path + kPublicSuffix, line + "\n"));
  fmt::print("{}\n", line);
  return {};
}

}  // namespace

void add_deployment_commands(CLI::App& federate, Action& action) {
  CLI::App* server = federate.add_subcommand("serve", "The server of clients on other machines");
  auto serving = std::make_shared<ServeArguments>();
  serving->config = add_config_arguments(*server);
  server->add_option("--listen", serving->listen, "Address to listen on; port 0 takes a free one")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  server->add_option("--key", serving->key, "The server's private key (gradus federate keygen)")
      ->type_name("FILE")
      ->required();
  server
      ->add_option("--clients", serving->clients,
                   "Public keys of the clients, one a line: of client 0, 1, ...")
      ->type_name("FILE")
      ->required();
  server->add_flag("--resume", serving->resume, "Continue the run after its last whole round");
  server->callback([&action, serving] { action = [serving] { return serve(*serving); }; });

  CLI::App* client = federate.add_subcommand("join", "A client, which trains on data of its own");
  auto joining = std::make_shared<JoinArguments>();
  joining->config = add_config_arguments(*client);
  client->add_option("--server", joining->server, "Where the server listens")
      ->type_name("HOST:PORT")
      ->required();
  client
      ->add_option("--server-key", joining->server_key,
                   "The server's public key, or the file with it")
      ->type_name("KEY")
      ->required();
  client->add_option("--key", joining->key, "This client's private key (gradus federate keygen)")
      ->type_name("FILE")
      ->required();
  client->add_option("--client", joining->client, "Number of this client, from 0")
      ->type_name("N")
      ->required();
  client
      ->add_option("--state", joining->state,
                   "Where it keeps what it remembers, if it does; unset is "
                   "RUN_FOLDER_client_N.bin")
      ->type_name("FILE");
  client->callback([&action, joining] { action = [joining] { return join_run(*joining); }; });

  CLI::App* keygen = federate.add_subcommand(
      "keygen", "Make a key: FILE for oneself, FILE.pub and standard output for the others");
  auto path = std::make_shared<std::string>();
  keygen->add_option("FILE", *path, "Where the private key goes; must not exist")->required();
  keygen->callback([&action, path] { action = [path] { return make_key(*path); }; });
}

}  // namespace gradus::cli
