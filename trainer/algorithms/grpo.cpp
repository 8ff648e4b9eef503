// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {
namespace {

// Added to the group's standard deviation, as verl does.
constexpr double kStdEpsilon = 1e-6;
// Log-ratios are held in this range before exp, as verl does, so that a stray one cannot overflow.
constexpr double kMaxLogRatio = 20.0;

// Group relative policy optimisation (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, Eq. 3
// and 4.1.2) with the defaults of DAPO (Yu et al. 2025, arXiv:2503.14476): a higher upper clip and
// a mean over the tokens of the whole mini-batch; the dual clip is Ye et al. 2020,
// arXiv:1912.09729, Eq. 8.
class Grpo : public Algorithm {
 public:
  explicit Grpo(const TrainerConfig& config)
      : clip_low_(config.clip_low), clip_high_(config.clip_high), clip_dual_(config.clip_dual) {}

  // (R - mean) / (std + eps) with the unbiased standard deviation; one response alone keeps its
  // reward.
  std::vector<double> advantages(std::span<const double> rewards) const override {
    if (rewards.size() == 1) return {rewards[0]};
    const double mean = mean_of(rewards);
    double squares = 0;
    for (const double reward : rewards) squares += (reward - mean) * (reward - mean);
    const double deviation = std::sqrt(squares / static_cast<double>(rewards.size() - 1));
    // Equal rewards carry no signal; their mean may be off by a rounding, which must not become
    // one.
    const bool is_flat = std::all_of(rewards.begin(), rewards.end(),
                                     [&](double reward) { return reward == rewards[0]; });
    std::vector<double> advantages;
    for (const double reward : rewards) {
      advantages.push_back(is_flat ? 0.0 : (reward - mean) / (deviation + kStdEpsilon));
    }
    return advantages;
  }

  // max(-A r, -A clip(r, 1 - low, 1 + high)), and for A < 0 at most -A dual.
  void add_policy_loss(const LossBatch& batch, LossTerms& terms) const override {
    for (size_t s = 0; s < batch.advantages.size(); ++s) {
      const double advantage = batch.advantages[s];
      for (int64_t t = batch.sequence_begin[s]; t < batch.sequence_begin[s + 1]; ++t) {
        const size_t i = static_cast<size_t>(t);
        const double log_ratio = double{batch.logprobs[i]} - double{batch.old_logprobs[i]};
        const double held = std::clamp(log_ratio, -kMaxLogRatio, kMaxLogRatio);
        const double ratio = std::exp(held);
        const double plain = -advantage * ratio;
        const double clipped = -advantage * std::clamp(ratio, 1 - clip_low_, 1 + clip_high_);
        double loss = std::max(plain, clipped);
        // Where the plain term is chosen the slope by lp is the term itself; elsewhere nothing
        // moves.
        double slope = plain >= clipped && held == log_ratio ? plain : 0.0;
        if (clipped > plain) terms.clipped_tokens += 1;
        if (advantage < 0 && clip_dual_ > 0 && loss > -advantage * clip_dual_) {
          loss = -advantage * clip_dual_;
          slope = 0;
          terms.dual_clipped_tokens += 1;
        }
        terms.policy_loss += loss / batch.num_tokens;
        terms.dlogprobs[i] += slope / batch.num_tokens;
      }
    }
  }

 private:
  double clip_low_, clip_high_, clip_dual_;
};

}  // namespace

double mean_of(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

Result<std::unique_ptr<Algorithm>> make_grpo(const TrainerConfig& config) {
  return std::unique_ptr<Algorithm>(new Grpo(config));
}

}  // namespace gradus::trainer
