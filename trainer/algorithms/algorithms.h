// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "trainer/algorithm.h"

// Makers of the built-in losses and advantages.
namespace gradus::trainer {

Result<std::unique_ptr<PolicyLoss>> make_ppo_loss(const AlgorithmConfig& config);
Result<std::unique_ptr<PolicyLoss>> make_reinforce_loss(const AlgorithmConfig& config);

Result<std::unique_ptr<AdvantageEstimator>> make_dr_grpo_advantage(const AlgorithmConfig& config);
Result<std::unique_ptr<AdvantageEstimator>> make_grpo_advantage(const AlgorithmConfig& config);

}  // namespace gradus::trainer
