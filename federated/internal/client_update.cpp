// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/client_update.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_set>

#include "common/rng.h"
#include "federated/compression.h"
#include "privacy/gaussian.h"

namespace gradus::federated::internal {
namespace {

// `count` different numbers below `bound`, sorted; costs what it gives (Floyd 1987).
std::vector<int64_t> sample_below(int64_t bound, int64_t count, RngSequence& random) {
  std::unordered_set<int64_t> chosen;
  for (int64_t j = bound - count; j < bound; ++j) {
    const auto t = static_cast<int64_t>(random.below(static_cast<uint64_t>(j) + 1));
    if (!chosen.insert(t).second) chosen.insert(j);
  }
  std::vector<int64_t> sorted(chosen.begin(), chosen.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

// Each number below `bound` with `probability`; costs what it gives, by geometric gaps.
std::vector<int64_t> poisson_below(int64_t bound, double probability, RngSequence& random) {
  std::vector<int64_t> chosen;
  if (probability >= 1) {
    for (int64_t k = 0; k < bound; ++k) chosen.push_back(k);
    return chosen;
  }
  for (int64_t k = -1;;) {
    const double gap = std::floor(std::log(random.uniform()) / std::log1p(-probability));
    if (gap >= static_cast<double>(bound - k - 1)) return chosen;
    k += 1 + static_cast<int64_t>(gap);
    chosen.push_back(k);
  }
}

}  // namespace

std::vector<double> cumulated_samples(const ClientsConfig& clients, const LocalTask& task) {
  std::vector<double> sums;
  if (clients.sampler != SamplerKind::kWeighted) return sums;
  double sum = 0;
  for (int64_t k = 0; k < task.num_clients(); ++k) {
    sums.push_back(sum += static_cast<double>(task.num_samples(k)));
  }
  return sums;
}

std::vector<int64_t> choose_clients(const ClientsConfig& clients, int64_t n,
                                    std::span<const double> cumulated_samples, uint64_t seed,
                                    int64_t round) {
  RngSequence random(hash64({seed, kDrawSample, static_cast<uint64_t>(round)}),
                     RngStream::kSampling);
  std::vector<int64_t> chosen;
  switch (clients.sampler) {
    case SamplerKind::kUniform:
      chosen = sample_below(n, clients.per_round, random);
      break;
    case SamplerKind::kPoisson:
      chosen =
          poisson_below(n, static_cast<double>(clients.per_round) / static_cast<double>(n), random);
      break;
    case SamplerKind::kCyclic:
      for (int64_t i = 0; i < clients.per_round; ++i) {
        chosen.push_back((round * clients.per_round + i) % n);
      }
      std::sort(chosen.begin(), chosen.end());
      break;
    case SamplerKind::kWeighted: {
      std::set<int64_t> set;
      while (static_cast<int64_t>(set.size()) < clients.per_round) {
        const double at = random.uniform() * cumulated_samples.back();
        set.insert(std::upper_bound(cumulated_samples.begin(), cumulated_samples.end(), at) -
                   cumulated_samples.begin());
      }
      chosen.assign(set.begin(), set.end());
      break;
    }
  }
  return chosen;
}

uint64_t initial_seed(uint64_t run_seed) { return hash64({run_seed, 0x101}); }

uint64_t training_seed(uint64_t run_seed, int64_t job, int64_t client) {
  return hash64(
      {run_seed, kDrawTraining, static_cast<uint64_t>(job), static_cast<uint64_t>(client)});
}

double client_lr(const LocalTrainingConfig& local, int64_t version) {
  return local.lr * std::pow(local.lr_decay, static_cast<double>(version));
}

int64_t task_state_size(const Aggregator& aggregator, const LocalTask& task) {
  return task.state_size(aggregator.client_terms(0));
}

int64_t client_state_size(const FederatedConfig& config, const Aggregator& aggregator,
                          const LocalTask& task) {
  const bool keeps = config.compression.is_on() && config.compression.has_error_feedback;
  return task_state_size(aggregator, task) +
         (keeps ? task.num_parameters() * aggregator.num_vectors() : 0);
}

void compress_and_clip(const FederatedConfig& config, std::span<float> update,
                       std::span<float> remainder) {
  if (config.compression.is_on()) {
    const auto size = static_cast<int64_t>(update.size());
    Result<std::vector<uint8_t>> bytes = std::vector<uint8_t>();
    if (remainder.empty()) {
      bytes = compress(config.compression.config(), update);
    } else {
      ErrorFeedback feedback(size);
      std::copy(remainder.begin(), remainder.end(), feedback.remainder().begin());
      bytes = feedback.compress(config.compression.config(), update);
      if (bytes.ok()) std::ranges::copy(feedback.remainder(), remainder.begin());
    }
    // Values that are not finite go on as they are: the round refuses them by name.
    if (!bytes.ok()) return;
    const Result<std::vector<float>> values = decompress(*bytes, size);
    GRADUS_CHECK(values.ok(), values.status().message());
    std::copy(values->begin(), values->end(), update.begin());
  }
  // Refused by the round too, if it cannot be clipped.
  if (config.privacy.is_on()) (void)privacy::clip_update(update, config.privacy.clip_norm);
}

Result<std::unique_ptr<Aggregator>> aggregator_of(const FederatedConfig& config,
                                                  const LocalTask& task) {
  return make_aggregator(config.strategy, {.num_parameters = task.num_parameters(),
                                           .num_clients = task.num_clients(),
                                           .num_rounds = config.num_rounds,
                                           .client_lr = config.local.lr,
                                           .client_momentum = config.local.momentum,
                                           .tensors = task.tensors()});
}

}  // namespace gradus::federated::internal
