// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "trainer/advantage.h"
#include "trainer/policy_loss.h"

// Makers of the built-in losses and advantages, by file.
namespace gradus::trainer {

using MadeLoss = Result<std::unique_ptr<PolicyLoss>>;
using MadeAdvantage = Result<std::unique_ptr<AdvantageEstimator>>;

// clipped_losses.cpp
MadeLoss make_ppo_loss(const AlgorithmConfig& config);  // decoupled_ppo and m2po too
MadeLoss make_clip_cov_loss(const AlgorithmConfig& config);
MadeLoss make_gspo_loss(const AlgorithmConfig& config);
MadeLoss make_luspo_loss(const AlgorithmConfig& config);
// geometric_loss.cpp
MadeLoss make_gmpo_loss(const AlgorithmConfig& config);
// smooth_losses.cpp
MadeLoss make_kl_cov_loss(const AlgorithmConfig& config);
MadeLoss make_sapo_loss(const AlgorithmConfig& config);
// weighted_losses.cpp
MadeLoss make_cispo_loss(const AlgorithmConfig& config);
MadeLoss make_dppo_tv_loss(const AlgorithmConfig& config);
MadeLoss make_gpg_loss(const AlgorithmConfig& config);
MadeLoss make_reinforce_loss(const AlgorithmConfig& config);
MadeLoss make_vespo_loss(const AlgorithmConfig& config);

// group_advantages.cpp: what compares the responses of a group
MadeAdvantage make_dr_grpo_advantage(const AlgorithmConfig& config);
MadeAdvantage make_gdpo_advantage(const AlgorithmConfig& config);
MadeAdvantage make_grpo_advantage(const AlgorithmConfig& config);
MadeAdvantage make_maxrl_advantage(const AlgorithmConfig& config);
MadeAdvantage make_opo_advantage(const AlgorithmConfig& config);
MadeAdvantage make_pass_at_k_advantage(const AlgorithmConfig& config);
MadeAdvantage make_reinforce_pp_baseline_advantage(const AlgorithmConfig& config);
MadeAdvantage make_rloo_advantage(const AlgorithmConfig& config);
// return_advantages.cpp: what looks at the rewards of tokens
MadeAdvantage make_gae_advantage(const AlgorithmConfig& config);
MadeAdvantage make_reinforce_pp_advantage(const AlgorithmConfig& config);
MadeAdvantage make_remax_advantage(const AlgorithmConfig& config);

// (x - mean) / sqrt(variance + 1e-8) with the unbiased variance, as verl whitens; equal values
// become exact zeros.
void whiten(std::vector<double>& values);

// sequence_begin of responses.
std::vector<int64_t> begins_of(std::span<const ScoredSequence> sequences);

}  // namespace gradus::trainer
