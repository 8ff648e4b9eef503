// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "common/registry.h"
#include "trainer/algorithm_config.h"

// The policy loss of one response's tokens, with its gradient in closed form. In double. Losses
// that look at a whole response (gspo, gmpo, luspo, vespo) need no more than this, since a response
// is never split; what needs the whole mini-batch is found before the first backward
// (trainer/loss_plan.h) and comes as weights and marks.
namespace gradus::trainer {

// Of the mini-batch over all ranks.
struct BatchCounts {
  double num_tokens = 0;            // N
  double num_sequences = 0;         // B, those with tokens
  double num_signal_sequences = 0;  // those with an advantage that is not 0
};

// One response; spans over its n loss tokens.
struct LossSequence {
  std::span<const double> logprobs;  // lp
  // lp where it stands under a stop-gradient: equal to `logprobs`, but held when a test moves
  // those.
  std::span<const double> stopped;
  std::span<const double> old_logprobs;  // lo
  std::span<const double> advantages;    // A
  std::span<const double> weights;       // w, multiply the loss; 0: left out
  std::span<const uint8_t> marks;        // tokens that clip_cov and kl_cov treat
  const BatchCounts* counts = nullptr;
};

// Sums over tokens, for metrics.
struct LossCounts {
  double clipped_low = 0, clipped_high = 0;  // the clip holds the ratio below, above
  double dual_clipped = 0;
};

class PolicyLoss {
 public:
  virtual ~PolicyLoss() = default;

  // Fills loss[t], the weighted loss of token t, and slope[t], the derivative of their sum by
  // logprobs[t]. Zero advantages give zero slopes. Thread-safe.
  virtual void evaluate(const LossSequence& sequence, std::span<double> loss,
                        std::span<double> slope, LossCounts& counts) const = 0;
};

using LossRegistry = Registry<PolicyLoss, const AlgorithmConfig&>;
void register_builtin_losses(LossRegistry& registry);

}  // namespace gradus::trainer
