// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "trainer/loss_plan.h"

// Weights for tokens that other weights sampled than those at the start of the step.
namespace gradus::trainer {

// Log-ratios are held in [-20, 20] before exp, as verl does, so that a stray one cannot overflow.
inline constexpr double kMaxLogRatio = 20.0;
double exp_held(double log_ratio);

// Weight of the policy loss of each token by the correction of the configuration (that of
// decoupled_ppo and m2po included). [tokens]
std::vector<double> correction_weights(const AlgorithmConfig& config, const MiniBatch& batch);

// Whether `reinforce` gets its weights from lp and lb at the time of its loss.
bool weighs_at_loss(const AlgorithmConfig& config);
// That weight: min(exp(lp - lb), high), no less than low.
double bypass_weight(const AlgorithmConfig& config, double logprob, double behavior_logprob);

}  // namespace gradus::trainer
