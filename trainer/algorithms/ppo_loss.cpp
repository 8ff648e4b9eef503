// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {
namespace {

// Log-ratios are held in this range before exp, as verl does, so that a stray one cannot overflow.
constexpr double kMaxLogRatio = 20.0;

// PPO (Schulman et al. 2017, arXiv:1707.06347, Eq. 7) with an upper clip of its own (Yu et al.
// 2025, DAPO, arXiv:2503.14476) and the dual clip (Ye et al. 2020, arXiv:1912.09729, Eq. 8).
class PpoLoss : public PolicyLoss {
 public:
  explicit PpoLoss(const AlgorithmConfig& config)
      : clip_low_(config.clip_low), clip_high_(config.clip_high), clip_dual_(config.clip_dual) {}

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

Result<std::unique_ptr<PolicyLoss>> make_ppo_loss(const AlgorithmConfig& config) {
  return std::unique_ptr<PolicyLoss>(new PpoLoss(config));
}

}  // namespace gradus::trainer
