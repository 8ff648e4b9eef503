// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "common/metrics.h"
#include "trainer/loss_plan.h"

namespace gradus::trainer {

// What an update adds up over its micro-batches and ranks for the metrics. The micro-batches of all
// ranks are added one by one in their order, so that the sums have the same bits on any number of
// ranks. Plain data; not thread-safe.
struct UpdateSums {
  // After reduce().
  double policy_loss = 0, kl_loss = 0, entropy = 0, policy_kl = 0;
  double clipped = 0, clipped_low = 0, clipped_high = 0, dual_clipped = 0;  // shares of N tokens
  double entropy_of[2] = {0, 0}, tokens_of[2] = {0, 0};  // of incorrect, correct responses
  double min_ratio = std::numeric_limits<double>::infinity();
  double max_ratio = -std::numeric_limits<double>::infinity();
  double max_mismatch = 0;
  // Of this rank: the sums above for each micro-batch, and those of the one that is not ended.
  std::vector<double> micro_batches{};
  double open_entropy_of[2] = {0, 0}, open_tokens_of[2] = {0, 0};

  void add_entropies(bool is_correct, std::span<const float> entropies);
  // Ends a micro-batch, whose entropies came before.
  void add(const LossTerms& terms, double num_tokens);
  // Over the ranks; collective.
  void reduce(comm::Communicator& communicator);
  // Of micro-batches that are all here.
  void reduce();

  double loss(const AlgorithmConfig& config, double entropy_coef) const;
  // actor/... and clip_ratio/...
  void write(const AlgorithmConfig& config, double entropy_coef, Metrics& metrics) const;
};

}  // namespace gradus::trainer
