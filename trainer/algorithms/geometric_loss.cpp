// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "trainer/algorithms/algorithms.h"

namespace gradus::trainer {
namespace {

// GMPO (Zhao et al. 2025, arXiv:2507.20673, Eq. 5): the geometric mean of the ratios, each clipped
// by the side of its advantage: D = sgn(A) min(sgn(A) (lp - lo), sgn(A) clip(lp - lo, -low, high)),
// the loss of all tokens is -mean(A) exp(mean D).
class GmpoLoss : public PolicyLoss {
 public:
  explicit GmpoLoss(const AlgorithmConfig& config)
      : low_(config.clip_low), high_(config.clip_high) {}

  void evaluate(const LossSequence& s, std::span<double> loss, std::span<double> slope,
                LossCounts& counts) const override {
    const double length = static_cast<double>(loss.size());
    double mean_clipped = 0, mean_advantage = 0, weights = 0;
    for (size_t t = 0; t < loss.size(); ++t) {
      const double log_ratio = s.logprobs[t] - s.old_logprobs[t];
      mean_clipped += clipped(s.advantages[t], log_ratio) / length;
      mean_advantage += s.advantages[t] / length;
      weights += s.weights[t];
    }
    const double of_response = -mean_advantage * std::exp(mean_clipped);
    for (size_t t = 0; t < loss.size(); ++t) {
      const double log_ratio = s.logprobs[t] - s.old_logprobs[t];
      const double advantage = s.advantages[t];
      loss[t] = s.weights[t] * of_response;
      const bool moves = advantage != 0 && clipped(advantage, log_ratio) == log_ratio;
      slope[t] = moves ? weights * of_response / length : 0.0;
      if (advantage > 0 && log_ratio > high_) counts.clipped_high += 1;
      if (advantage < 0 && log_ratio < -low_) counts.clipped_low += 1;
    }
  }

 private:
  double clipped(double advantage, double log_ratio) const {
    if (advantage > 0) return std::min(log_ratio, high_);
    if (advantage < 0) return std::max(log_ratio, -low_);
    return 0;
  }

  double low_, high_;
};

}  // namespace

MadeLoss make_gmpo_loss(const AlgorithmConfig& config) {
  return std::unique_ptr<PolicyLoss>(new GmpoLoss(config));
}

}  // namespace gradus::trainer
