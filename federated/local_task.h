// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "federated/aggregator.h"
#include "federated/federated_config.h"

// What the clients of a run learn. The engine (simulation.h) knows no more of it than this.
namespace gradus::federated {

// One client's training in one round. Spans are borrowed for the call.
struct ClientJob {
  int64_t client_id = 0;
  uint64_t seed = 0;                     // of everything random in it
  std::span<const float> model_P{};      // x
  std::span<const float> broadcast_P{};  // Aggregator::broadcast(); may be empty: zeros
  const ClientTerms* terms = nullptr;
  double lr = 0;
};

// Trains clients, one after the other, with a workspace of its own. One thread.
class LocalWorker {
 public:
  virtual ~LocalWorker() = default;
  // Fills `update` [P * num_vectors] and, of the report, everything that the terms ask for.
  // `state_S` is what the client keeps, LocalTask::state_size() floats, zeros at first; empty if
  // the strategy wants none.
  virtual ClientReport train(const ClientJob& job, std::span<float> update,
                             std::span<float> state_S) = 0;
};

struct Evaluation {
  double loss = 0, accuracy = 0;
};

// Thread-safe after it is made.
class LocalTask {
 public:
  virtual ~LocalTask() = default;
  virtual int64_t num_parameters() const = 0;  // P
  virtual std::vector<TensorSlice> tensors() const = 0;
  virtual int64_t num_clients() const = 0;
  virtual int64_t num_samples(int64_t client) const = 0;
  // Floats that a client keeps between rounds under these terms.
  virtual int64_t state_size(const ClientTerms& terms) const = 0;
  virtual void initialize(uint64_t seed, std::span<float> model_P) const = 0;
  virtual std::unique_ptr<LocalWorker> make_worker() const = 0;
  // On held-out data; uses all threads. Nothing to evaluate: accuracy and loss 0 and false.
  virtual bool evaluate(std::span<const float> model_P, Evaluation& evaluation) const = 0;
};

// The task of a run, with its data. InvalidArgument or NotFound if those cannot be had.
Result<std::unique_ptr<LocalTask>> make_local_task(const FederatedConfig& config, uint64_t seed);

}  // namespace gradus::federated
