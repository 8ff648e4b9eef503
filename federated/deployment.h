// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "federated/federated_config.h"
#include "federated/identity.h"
#include "federated/local_task.h"

// Federated learning between processes: one server and N clients over TLS (docs/federated.md, "A
// deployment"). The rounds are those of a simulation (simulation.h) and so are their bits.
namespace gradus::federated {

// InvalidArgument with every setting that a deployment cannot have, one a line.
Status validate_deployment(const FederatedConfig& config);

// What the server's loop asks of its caller, from the thread that calls run().
struct ServerHooks {
  // Makes the state of the server last: `write` writes it to a path. Called at the start and after
  // every round, before its clients hear of the next; gives the path that it can be read from
  // until the next call.
  std::function<Result<std::string>(int64_t round,
                                    const std::function<Status(const std::string& path)>& write)>
      save;
  // After each round; may add to the metrics. `model_P` is borrowed.
  std::function<Status(int64_t round, std::span<const float> model_P, Metrics& metrics)> on_round;
  std::function<void(const std::string& message)> say;  // to people; from any thread
  std::function<bool()> is_stopped;                     // asked several times a second
};

// The server. It never holds a whole update: values are added, as they come, to sums of 8 bytes a
// parameter and vector; the model is in a file and read by tiles. One run() at a time.
class DeploymentServer {
 public:
  // Listens. `client_keys` has the key of client i at i. `task` outlives it. Errors as
  // SecureListener::listen.
  static Result<std::unique_ptr<DeploymentServer>> make(const FederatedConfig& config,
                                                        uint64_t seed, const LocalTask& task,
                                                        const Identity& identity,
                                                        std::vector<PublicKey> client_keys,
                                                        const std::string& address);
  ~DeploymentServer();

  int port() const;

  // Goes on from a state that `save` wrote. DataLoss or InvalidArgument if it is another run's.
  Status load(const std::string& path);
  int64_t round() const;  // rounds done

  // All rounds that are left; ends early, in good order, when is_stopped() says so.
  Status run(const ServerHooks& hooks);

  struct State;

 private:
  explicit DeploymentServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct ClientOptions {
  int64_t client_id = 0;
  std::string server;  // host:port
  PublicKey server_key;
  // Where a client keeps what its strategy or compression has it remember, with the update of the
  // round that it remembers; no file if it remembers nothing.
  std::string state_path;
  std::function<void(const std::string& message)> say;
  std::function<bool()> is_stopped;
};

// A client, until the run has ended or it is stopped. Connects again when the server is gone, for
// federated.deploy.retry_s at most: then Unavailable. InvalidArgument if the server refuses it for
// good, or is another one.
Status run_client(const FederatedConfig& config, uint64_t seed, const LocalTask& task,
                  const Identity& identity, const ClientOptions& options);

}  // namespace gradus::federated
