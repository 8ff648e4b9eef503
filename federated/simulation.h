// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "common/aligned_buffer.h"
#include "common/metrics.h"
#include "federated/aggregator.h"
#include "federated/federated_config.h"
#include "federated/internal/client_states.h"
#include "federated/internal/client_update.h"
#include "federated/local_task.h"
#include "federated/replay_guard.h"
#include "federated/round.h"

// Federated learning simulated: virtual clients on the threads of all ranks.
namespace gradus::federated {

// A client on its way: what it trains, and when it is done by the simulated clock.
struct Flight {
  int64_t client_id = 0;
  int64_t job = 0;      // number of the training, for its randomness
  int64_t version = 0;  // of the model that it begins from
  double finish_s = 0;
};

// The server, its clients and a simulated clock. A client is a number until it takes part: nothing
// is kept for idle ones, and a round costs what its participants cost. Everything random is a
// function of seed, round and client, and updates are summed in fixed point, so bits depend neither
// on threads nor on ranks, and a run that goes on from save() repeats what would have been. Every
// rank makes the same calls. Not thread-safe.
class Simulation {
 public:
  // `state_path` is where clients' states go (ClientStates); empty: in memory. `is_resumed`: those
  // that are there stay, until load(). `task` outlives it.
  static Result<std::unique_ptr<Simulation>> make(const FederatedConfig& config, uint64_t seed,
                                                  const LocalTask& task, comm::Communicator& ranks,
                                                  const std::string& state_path,
                                                  bool is_resumed = false);

  // One step of the server (none, if too few updates came in). Sets the round's metrics. An error
  // ends the run: a report lacks what the strategy needs, or the disk refuses.
  Status run_round(Metrics& metrics);

  int64_t round() const { return round_; }  // rounds done
  double clock_s() const { return clock_s_; }
  std::span<const float> model() const { return {model_.data(), static_cast<size_t>(p_)}; }
  bool evaluate(Evaluation& evaluation) const { return task_.evaluate(model(), evaluation); }

  // Whether another round would cost more privacy than federated.privacy.max_epsilon.
  bool is_budget_spent() const;

  // Model, strategy, clock and clients under way as one file; rank 0 writes, all ranks read.
  // DataLoss or InvalidArgument if it is another run's. After a checkpoint is committed, and after
  // load(), every rank calls start_interval().
  Status save(const std::string& path) const;
  Status load(const std::string& path, const std::string& state_path);
  void start_interval() { states_.start_interval(round_, ranks_.rank()); }

 private:
  struct Outcome;  // of a round's clients

  Simulation(const FederatedConfig& config, uint64_t seed, const LocalTask& task,
             comm::Communicator& ranks);
  Outcome pick_sync();
  Outcome pick_async();
  double duration_s(int64_t client, int64_t job) const;
  bool has_trait(int64_t client, uint64_t trait, double fraction) const;
  std::vector<Flight> share_of_rank(const std::vector<Flight>& flights) const;
  Status train(const std::vector<Flight>& mine, const ClientTerms& terms, Round& round,
               Refusals& refusals);
  void attack(const Flight& flight, std::span<float> update) const;
  RoundOptions round_options(const Outcome& outcome) const;
  int64_t task_state_size() const { return internal::task_state_size(*aggregator_, task_); }
  int64_t state_size() const { return internal::client_state_size(config_, *aggregator_, task_); }

  FederatedConfig config_;
  uint64_t seed_;
  const LocalTask& task_;
  comm::Communicator& ranks_;
  int64_t p_;
  std::unique_ptr<Aggregator> aggregator_;
  double expected_weight_ = 0;  // privacy: of a round
  internal::ClientStates states_;
  AlignedBuffer model_;
  ReplayGuard guard_{1};
  int64_t round_ = 0;
  double clock_s_ = 0;
  int64_t num_jobs_ = 0;
  std::vector<Flight> under_way_;                       // async
  std::map<int64_t, std::vector<float>> older_models_;  // async: of versions under way
  std::vector<double> cumulated_samples_;               // weighted sampler
  std::vector<std::unique_ptr<LocalWorker>> idle_workers_;
  std::mutex workers_mutex_;
  AlignedBuffer updates_;  // one row a participant of this rank
};

}  // namespace gradus::federated
