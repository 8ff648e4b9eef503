// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {
namespace {

using Sequences = std::span<const ScoredSequence>;

// Rewards by token: the response's at its last one, less the penalties.
std::vector<double> token_rewards(const ScoredSequence& sequence) {
  std::vector<double> rewards(static_cast<size_t>(sequence.num_tokens), 0.0);
  if (rewards.empty()) return rewards;
  for (size_t t = 0; t < sequence.penalties.size(); ++t) rewards[t] -= sequence.penalties[t];
  rewards.back() += sequence.reward;
  return rewards;
}

// Rewards from each token on, G_t = R_t + gamma G_{t+1}. Tokens that do not count (of tools, say)
// are not among the loss tokens, so the return passes over them.
std::vector<double> returns_of(const ScoredSequence& sequence, double gamma) {
  std::vector<double> returns = token_rewards(sequence);
  for (size_t t = returns.size(); t-- > 1;) returns[t - 1] += gamma * returns[t];
  return returns;
}

// REINFORCE++ (Hu et al. 2025, arXiv:2501.03262): returns, whitened over the tokens of the batch.
class ReinforcePlusPlus : public AdvantageEstimator {
 public:
  explicit ReinforcePlusPlus(const AlgorithmConfig& config)
      : gamma_(config.gamma), whitens_(config.scaling != Scaling::kNone) {}

  Advantages estimate(Sequences sequences) const override {
    Advantages advantages;
    advantages.sequence_begin = begins_of(sequences);
    for (const ScoredSequence& sequence : sequences) {
      const std::vector<double> returns = returns_of(sequence, gamma_);
      advantages.tokens.insert(advantages.tokens.end(), returns.begin(), returns.end());
    }
    if (whitens_) whiten(advantages.tokens);
    return advantages;
  }

 private:
  double gamma_;
  bool whitens_;
};

// ReMax (Li et al. 2023, arXiv:2310.10505): the reward of the greedy response as baseline.
class Remax : public AdvantageEstimator {
 public:
  Advantages estimate(Sequences sequences) const override {
    Advantages advantages;
    advantages.sequence_begin = begins_of(sequences);
    for (const ScoredSequence& sequence : sequences) {
      for (const double value : returns_of(sequence, 1.0)) {
        advantages.tokens.push_back(value - *sequence.greedy_reward);
      }
    }
    return advantages;
  }
};

// Generalised advantage estimation (Schulman et al. 2015, arXiv:1506.02438, Eq. 16): delta_t = R_t
// + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambda A_{t+1}; then whitened over the batch.
class Gae : public AdvantageEstimator {
 public:
  explicit Gae(const AlgorithmConfig& config)
      : gamma_(config.gamma),
        lambda_(config.gae_lambda),
        whitens_(config.scaling != Scaling::kNone) {}

  Advantages estimate(Sequences sequences) const override {
    Advantages advantages;
    advantages.sequence_begin = begins_of(sequences);
    for (const ScoredSequence& sequence : sequences) {
      const std::vector<double> rewards = token_rewards(sequence);
      std::vector<double> of_tokens(rewards.size());
      double later = 0, next_value = 0;
      for (size_t t = rewards.size(); t-- > 0;) {
        const double error = rewards[t] + gamma_ * next_value - sequence.values[t];
        later = of_tokens[t] = error + gamma_ * lambda_ * later;
        next_value = sequence.values[t];
      }
      for (size_t t = 0; t < rewards.size(); ++t) {
        advantages.tokens.push_back(of_tokens[t]);
        advantages.returns.push_back(of_tokens[t] + sequence.values[t]);
      }
    }
    if (whitens_) whiten(advantages.tokens);
    return advantages;
  }

 private:
  double gamma_, lambda_;
  bool whitens_;
};

MadeAdvantage made(AdvantageEstimator* estimator) {
  return std::unique_ptr<AdvantageEstimator>(estimator);
}

}  // namespace

void whiten(std::vector<double>& values) {
  if (values.empty()) return;
  if (std::all_of(values.begin(), values.end(), [&](double value) { return value == values[0]; })) {
    std::fill(values.begin(), values.end(), 0.0);
    return;
  }
  const double count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double root = std::sqrt(squares / (count - 1) + 1e-8);
  for (double& value : values) value = (value - mean) / root;
}

std::vector<int64_t> begins_of(Sequences sequences) {
  std::vector<int64_t> begins = {0};
  for (const ScoredSequence& sequence : sequences) {
    begins.push_back(begins.back() + sequence.num_tokens);
  }
  return begins;
}

MadeAdvantage make_reinforce_pp_advantage(const AlgorithmConfig& config) {
  return made(new ReinforcePlusPlus(config));
}
MadeAdvantage make_remax_advantage(const AlgorithmConfig&) { return made(new Remax()); }
MadeAdvantage make_gae_advantage(const AlgorithmConfig& config) { return made(new Gae(config)); }

}  // namespace gradus::trainer
