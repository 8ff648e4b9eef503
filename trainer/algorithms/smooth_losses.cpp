// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "trainer/algorithms/algorithms.h"
#include "trainer/algorithms/corrections.h"

namespace gradus::trainer {
namespace {

// SAPO (Gao et al. 2025, arXiv:2511.20347, Eq. 6): -A f(r) with f(r) = sigmoid(tau (r - 1)) 4 /
// tau, whose slope at r = 1 is 1; tau by the sign of the advantage.
class SapoLoss : public PolicyLoss {
 public:
  explicit SapoLoss(const AlgorithmConfig& config) : config_(config.sapo) {}

  void evaluate(const LossSequence& s, std::span<double> loss, std::span<double> slope,
                LossCounts&) const override {
    for (size_t t = 0; t < loss.size(); ++t) {
      const double log_ratio = s.logprobs[t] - s.old_logprobs[t];
      const double ratio = exp_held(log_ratio);
      const double advantage = s.advantages[t];
      const double tau = advantage > 0 ? config_.tau_positive : config_.tau_negative;
      const double gate = 1 / (1 + std::exp(-tau * (ratio - 1)));
      const bool moves = std::fabs(log_ratio) <= kMaxLogRatio;
      loss[t] = -s.weights[t] * advantage * gate * 4 / tau;
      slope[t] = moves ? -s.weights[t] * advantage * 4 * gate * (1 - gate) * ratio : 0.0;
    }
  }

 private:
  SapoConfig config_;
};

// KL-Cov (Cui et al. 2025, arXiv:2505.22617): -A r, and |lp - lo| more for marked tokens.
class KlCovLoss : public PolicyLoss {
 public:
  explicit KlCovLoss(const AlgorithmConfig& config) : kl_coef_(config.covariance.kl_coef) {}

  void evaluate(const LossSequence& s, std::span<double> loss, std::span<double> slope,
                LossCounts&) const override {
    for (size_t t = 0; t < loss.size(); ++t) {
      const double log_ratio = s.logprobs[t] - s.old_logprobs[t];
      const double plain = -s.advantages[t] * exp_held(log_ratio);
      loss[t] = plain;
      slope[t] = std::fabs(log_ratio) <= kMaxLogRatio ? plain : 0.0;
      if (s.marks[t] != 0) {
        loss[t] += kl_coef_ * std::fabs(log_ratio);
        if (log_ratio != 0) slope[t] += std::copysign(kl_coef_, log_ratio);
      }
      loss[t] *= s.weights[t];
      slope[t] *= s.weights[t];
    }
  }

 private:
  double kl_coef_;
};

}  // namespace

MadeLoss make_sapo_loss(const AlgorithmConfig& config) {
  return std::unique_ptr<PolicyLoss>(new SapoLoss(config));
}
MadeLoss make_kl_cov_loss(const AlgorithmConfig& config) {
  return std::unique_ptr<PolicyLoss>(new KlCovLoss(config));
}

}  // namespace gradus::trainer
