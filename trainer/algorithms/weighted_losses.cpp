// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "trainer/algorithms/algorithms.h"
#include "trainer/algorithms/corrections.h"

namespace gradus::trainer {
namespace {

// Losses -c A lp, where the factor c of a token is a constant under differentiation.
class WeightedLoss : public PolicyLoss {
 public:
  void evaluate(const LossSequence& s, std::span<double> loss, std::span<double> slope,
                LossCounts& counts) const override {
    fill_factors(s, slope, counts);
    for (size_t t = 0; t < loss.size(); ++t) {
      slope[t] *= -s.weights[t] * s.advantages[t];
      loss[t] = slope[t] * s.logprobs[t];
    }
  }

 protected:
  // From s.stopped, s.old_logprobs, s.advantages and s.counts.
  virtual void fill_factors(const LossSequence& s, std::span<double> factors,
                            LossCounts& counts) const = 0;
};

// REINFORCE (Williams 1992): c = 1. No ratio, so it is meant for one update per rollout batch, or
// for the weights of a correction.
class ReinforceLoss : public WeightedLoss {
  void fill_factors(const LossSequence&, std::span<double> factors, LossCounts&) const override {
    std::fill(factors.begin(), factors.end(), 1.0);
  }
};

// GPG (Chu et al. 2025, arXiv:2504.02546, Eq. 11): c = B / (responses with an advantage), so that
// those without do not thin the gradient.
class GpgLoss : public WeightedLoss {
  void fill_factors(const LossSequence& s, std::span<double> factors, LossCounts&) const override {
    const double factor = s.counts->num_sequences / std::max(1.0, s.counts->num_signal_sequences);
    std::fill(factors.begin(), factors.end(), factor);
  }
};

// CISPO (MiniMax-M1, Chen et al. 2025, arXiv:2506.13585, Eq. 5): c = clip(r, 1 - low, 1 + high).
class CispoLoss : public WeightedLoss {
 public:
  explicit CispoLoss(const AlgorithmConfig& config)
      : low_(config.clip_low), high_(config.clip_high) {}

 private:
  void fill_factors(const LossSequence& s, std::span<double> factors,
                    LossCounts& counts) const override {
    for (size_t t = 0; t < factors.size(); ++t) {
      const double ratio = exp_held(s.stopped[t] - s.old_logprobs[t]);
      factors[t] = std::clamp(ratio, 1 - low_, 1 + high_);
      if (ratio < 1 - low_) counts.clipped_low += 1;
      if (ratio > 1 + high_) counts.clipped_high += 1;
    }
  }

  double low_, high_;
};

// DPPO with the binary total variation (2026, arXiv:2602.04879): c = min(r, 20) where the
// probability moved no further than high up (A > 0) or low down, else 0.
class DppoTvLoss : public WeightedLoss {
 public:
  explicit DppoTvLoss(const AlgorithmConfig& config)
      : low_(config.clip_low), high_(config.clip_high) {}

 private:
  static constexpr double kMaxRatio = 20.0;  // verl's

  void fill_factors(const LossSequence& s, std::span<double> factors,
                    LossCounts& counts) const override {
    for (size_t t = 0; t < factors.size(); ++t) {
      const double step = std::exp(s.stopped[t]) - std::exp(s.old_logprobs[t]);
      const bool is_positive = s.advantages[t] > 0;
      const bool is_kept = is_positive ? step <= high_ : step >= -low_;
      factors[t] = is_kept ? std::min(exp_held(s.stopped[t] - s.old_logprobs[t]), kMaxRatio) : 0.0;
      if (!is_kept) (is_positive ? counts.clipped_high : counts.clipped_low) += 1;
    }
  }

  double low_, high_;
};

// VESPO (2026, arXiv:2602.10693): c = exp(lambda + k log w - lambda w), w the ratio of the
// response, k and lambda by the sign of the advantage; 1 at w = 1. Clamps are TRL's.
class VespoLoss : public WeightedLoss {
 public:
  explicit VespoLoss(const AlgorithmConfig& config) : config_(config.vespo) {}

 private:
  void fill_factors(const LossSequence& s, std::span<double> factors, LossCounts&) const override {
    double sum = 0;
    for (size_t t = 0; t < factors.size(); ++t) {
      sum += std::clamp(s.stopped[t] - s.old_logprobs[t], -kMaxLogRatio, kMaxLogRatio);
    }
    const double log_ratio = std::clamp(sum, std::log(1e-8), kMaxLogRatio);
    const double ratio = std::exp(log_ratio);
    for (size_t t = 0; t < factors.size(); ++t) {
      const bool is_negative = s.advantages[t] < 0;
      const double k = is_negative ? config_.k_negative : config_.k_positive;
      const double lambda = is_negative ? config_.lambda_negative : config_.lambda_positive;
      factors[t] = std::exp(lambda + k * log_ratio - lambda * ratio);
    }
  }

  VespoConfig config_;
};

MadeLoss made(PolicyLoss* loss) { return std::unique_ptr<PolicyLoss>(loss); }

}  // namespace

MadeLoss make_reinforce_loss(const AlgorithmConfig&) { return made(new ReinforceLoss()); }
MadeLoss make_gpg_loss(const AlgorithmConfig&) { return made(new GpgLoss()); }
MadeLoss make_cispo_loss(const AlgorithmConfig& config) { return made(new CispoLoss(config)); }
MadeLoss make_dppo_tv_loss(const AlgorithmConfig& config) { return made(new DppoTvLoss(config)); }
MadeLoss make_vespo_loss(const AlgorithmConfig& config) { return made(new VespoLoss(config)); }

}  // namespace gradus::trainer
