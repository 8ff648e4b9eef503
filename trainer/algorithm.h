// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/registry.h"
#include "trainer/trainer_config.h"

// What an algorithm of policy-gradient reinforcement learning decides: the advantage of each
// response and the loss of its tokens. Everything in double; symbols are those of docs/papers.md: A
// advantage, lp log-prob now, lo at the start of the step (bit for bit what the rollout recorded),
// lf of the initial model.
namespace gradus::trainer {

// Sequences of a micro-batch, their response tokens one after the other. N and B are global: of the
// whole mini-batch over all ranks, counted before the first backward.
struct LossBatch {
  std::span<const int64_t> sequence_begin;    // [S + 1] offsets into the token arrays
  std::span<const double> advantages;         // [S]
  std::span<const float> logprobs;            // lp, [tokens]
  std::span<const float> old_logprobs;        // lo
  std::span<const float> reference_logprobs;  // lf; empty without a KL term
  std::span<const float> entropies;           // of the token distribution, nats
  double num_tokens = 1;                      // N
  double num_sequences = 1;                   // B
};

// This micro-batch's share of the loss (so shares add up), its gradient, and sums for metrics (to
// be divided by N).
struct LossTerms {
  std::vector<double> dlogprobs, dentropies;                          // [tokens]
  double policy_loss = 0, kl_loss = 0, entropy = 0;                   // already divided by N
  double clipped_tokens = 0, dual_clipped_tokens = 0, policy_kl = 0;  // sums over tokens
};

// How the rewards of a group become advantages.
class AdvantageEstimator {
 public:
  virtual ~AdvantageEstimator() = default;

  // Advantages of the scored responses of one group; finite. Equal rewards give zeros.
  virtual std::vector<double> advantages(std::span<const double> rewards) const = 0;
};

// The loss of tokens whose advantages are known.
class PolicyLoss {
 public:
  virtual ~PolicyLoss() = default;

  // Adds the policy term: loss and dlogprobs (arrays are sized and zeroed).
  virtual void add_policy_loss(const LossBatch& batch, LossTerms& terms) const = 0;
};

using LossRegistry = Registry<PolicyLoss, const AlgorithmConfig&>;
using AdvantageRegistry = Registry<AdvantageEstimator, const AlgorithmConfig&>;

void register_builtin_losses(LossRegistry& registry);
void register_builtin_advantages(AdvantageRegistry& registry);

// The parts that a configuration names.
struct Algorithm {
  std::unique_ptr<AdvantageEstimator> advantage;
  std::unique_ptr<PolicyLoss> loss;
};
Result<Algorithm> make_algorithm(const AlgorithmConfig& config);

// The whole loss: policy term, + kl.coef KL to the initial model, - entropy_coef entropy, each a
// mean over the N tokens.
LossTerms loss_terms(const PolicyLoss& loss, const TrainerConfig& config, const LossBatch& batch);

}  // namespace gradus::trainer
