// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>

#include "trainer/algorithms/algorithms.h"
#include "trainer/algorithms/corrections.h"

namespace gradus::trainer {
namespace {

// The clipped objective of PPO (Schulman et al. 2017, arXiv:1707.06347, Eq. 7) with an upper clip
// of its own (Yu et al. 2025, DAPO, arXiv:2503.14476), the dual clip (Ye et al. 2020,
// arXiv:1912.09729, Eq. 8) and the two-sided clip (INTELLECT-2, 2025, arXiv:2505.07291):
//   max(-A min(r, delta), -A clip(r, 1 - low, 1 + high)), and for A < 0 at most -A dual.
struct Clip {
  explicit Clip(const AlgorithmConfig& config)
      : low(config.clip_low), high(config.clip_high), dual(config.clip_dual), delta(config.delta) {}

  double low, high, dual, delta;

  // The loss of one token; `slope` is its derivative by the log of the ratio. `moves`: whether the
  // ratio follows it.
  double loss(double advantage, double ratio, bool moves, double& slope, LossCounts& counts) const {
    const bool is_cut = delta > 0 && ratio > delta;
    const double plain = -advantage * (is_cut ? delta : ratio);
    const double clipped = -advantage * std::clamp(ratio, 1 - low, 1 + high);
    double loss = std::max(plain, clipped);
    // Where the plain term is chosen its slope is the term itself; elsewhere nothing moves.
    slope = plain >= clipped && moves && !is_cut ? plain : 0.0;
    if (clipped > plain) (advantage > 0 ? counts.clipped_high : counts.clipped_low) += 1;
    if (advantage < 0 && dual > 0 && loss > -advantage * dual) {
      loss = -advantage * dual;
      slope = 0;
      counts.dual_clipped += 1;
    }
    return loss;
  }
};

// The ratio of each token.
class TokenClipLoss : public PolicyLoss {
 public:
  // `leaves_marked`: marked tokens have no loss (clip-cov, Cui et al. 2025, arXiv:2505.22617).
  TokenClipLoss(const AlgorithmConfig& config, bool leaves_marked)
      : clip_(config), leaves_marked_(leaves_marked) {}

  void evaluate(const LossSequence& s, std::span<double> loss, std::span<double> slope,
                LossCounts& counts) const override {
    for (size_t t = 0; t < loss.size(); ++t) {
      const double log_ratio = s.logprobs[t] - s.old_logprobs[t];
      const double weight = leaves_marked_ && s.marks[t] != 0 ? 0.0 : s.weights[t];
      const double ratio = exp_held(log_ratio);
      double token_slope = 0;
      loss[t] = weight * clip_.loss(s.advantages[t], ratio, std::fabs(log_ratio) <= kMaxLogRatio,
                                    token_slope, counts);
      slope[t] = weight * token_slope;
    }
  }

 private:
  Clip clip_;
  bool leaves_marked_;
};

// GSPO (Zheng et al. 2025, arXiv:2507.18071, Eq. 5 and the token form of Eq. 14): all tokens have
// the ratio s = exp(mean of lp - lo) of their response, and each moves it by itself: log s_t = lp_t
// - sg(lp_t) + sg(log s). With equal weights and advantages in a response that is the gradient of
// s. LUSPO (2026, arXiv:2602.05261): the same times the response's length.
class SequenceClipLoss : public PolicyLoss {
 public:
  SequenceClipLoss(const AlgorithmConfig& config, bool scales_by_length)
      : clip_(config), scales_by_length_(scales_by_length) {}

  void evaluate(const LossSequence& s, std::span<double> loss, std::span<double> slope,
                LossCounts& counts) const override {
    const double length = static_cast<double>(loss.size());
    double mean = 0;
    for (size_t t = 0; t < loss.size(); ++t) mean += (s.stopped[t] - s.old_logprobs[t]) / length;
    for (size_t t = 0; t < loss.size(); ++t) {
      const double log_ratio = s.logprobs[t] - s.stopped[t] + mean;
      const double ratio = std::exp(std::min(log_ratio, kMaxLogSequenceRatio));
      const double weight = s.weights[t] * (scales_by_length_ ? length : 1.0);
      double token_slope = 0;
      loss[t] = weight * clip_.loss(s.advantages[t], ratio, log_ratio <= kMaxLogSequenceRatio,
                                    token_slope, counts);
      slope[t] = weight * token_slope;
    }
  }

 private:
  static constexpr double kMaxLogSequenceRatio = 10.0;  // verl's

  Clip clip_;
  bool scales_by_length_;
};

MadeLoss made(PolicyLoss* loss) { return std::unique_ptr<PolicyLoss>(loss); }

}  // namespace

MadeLoss make_ppo_loss(const AlgorithmConfig& config) {
  return made(new TokenClipLoss(config, false));
}
MadeLoss make_clip_cov_loss(const AlgorithmConfig& config) {
  return made(new TokenClipLoss(config, true));
}
MadeLoss make_gspo_loss(const AlgorithmConfig& config) {
  return made(new SequenceClipLoss(config, false));
}
MadeLoss make_luspo_loss(const AlgorithmConfig& config) {
  return made(new SequenceClipLoss(config, true));
}

}  // namespace gradus::trainer
