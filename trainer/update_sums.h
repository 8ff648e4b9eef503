// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <span>

#include "comm/communicator.h"
#include "common/metrics.h"
#include "trainer/loss_plan.h"

namespace gradus::trainer {

// What an update adds up over its micro-batches and ranks for the metrics. Plain data.
struct UpdateSums {
  double policy_loss = 0, kl_loss = 0, entropy = 0, policy_kl = 0;
  double clipped = 0, clipped_low = 0, clipped_high = 0, dual_clipped = 0;  // shares of N tokens
  double entropy_of[2] = {0, 0}, tokens_of[2] = {0, 0};  // of incorrect, correct responses
  double min_ratio = std::numeric_limits<double>::infinity();
  double max_ratio = -std::numeric_limits<double>::infinity();
  double max_mismatch = 0;

  void add(const LossTerms& terms, double num_tokens);
  void add_entropies(bool is_correct, std::span<const float> entropies);
  // Over the ranks; collective.
  void reduce(comm::Communicator& communicator);

  double loss(const AlgorithmConfig& config, double entropy_coef) const;
  // actor/... and clip_ratio/...
  void write(const AlgorithmConfig& config, double entropy_coef, Metrics& metrics) const;
};

}  // namespace gradus::trainer
