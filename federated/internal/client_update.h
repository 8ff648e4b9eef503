// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "federated/aggregator.h"
#include "federated/federated_config.h"
#include "federated/local_task.h"

// Who takes part in a round and what a client does in it: the same functions in a simulation and in
// the processes of a deployment, so that both get the same bits.
namespace gradus::federated::internal {

// What a draw is for, so that none is used twice.
inline constexpr uint64_t kDrawSample = 1, kDrawTraining = 7;

// Sums of the clients' samples up to each, for the weighted sampler; empty for others.
std::vector<double> cumulated_samples(const ClientsConfig& clients, const LocalTask& task);

// The clients of a round by the configured sampler, increasing.
std::vector<int64_t> choose_clients(const ClientsConfig& clients, int64_t num_clients,
                                    std::span<const double> cumulated_samples, uint64_t seed,
                                    int64_t round);

uint64_t initial_seed(uint64_t run_seed);
uint64_t training_seed(uint64_t run_seed, int64_t job, int64_t client);
double client_lr(const LocalTrainingConfig& local, int64_t version);

// Floats that a client keeps from round to round: the task's, then the remainder of compression.
int64_t task_state_size(const Aggregator& aggregator, const LocalTask& task);
int64_t client_state_size(const FederatedConfig& config, const Aggregator& aggregator,
                          const LocalTask& task);

// Compresses and clips, as configured, what a client is about to send; `remainder` is what its
// compression keeps, empty if nothing.
void compress_and_clip(const FederatedConfig& config, std::span<float> update,
                       std::span<float> remainder);

Result<std::unique_ptr<Aggregator>> aggregator_of(const FederatedConfig& config,
                                                  const LocalTask& task);

}  // namespace gradus::federated::internal
