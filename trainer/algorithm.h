// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "trainer/advantage.h"
#include "trainer/loss_plan.h"

// An algorithm of policy-gradient reinforcement learning: the parts that a configuration names.
namespace gradus::trainer {

struct Algorithm {
  AlgorithmConfig config;  // resolved
  std::unique_ptr<AdvantageEstimator> advantage;
  std::unique_ptr<PolicyLoss> loss;
};

// InvalidArgument with the nearest name if a part is unknown.
Result<Algorithm> make_algorithm(const AlgorithmConfig& config, int64_t max_new_tokens);

}  // namespace gradus::trainer
