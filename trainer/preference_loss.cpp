// SPDX-License-Identifier: Apache-2.0
#include "trainer/preference_loss.h"

#include <algorithm>
#include <cmath>

namespace gradus::trainer {
namespace {

double sigmoid(double x) {
  if (x >= 0) return 1 / (1 + std::exp(-x));
  const double e = std::exp(x);
  return e / (1 + e);
}

// -log sigmoid(x), without overflow.
double softplus_of_minus(double x) {
  return std::max(-x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
}

}  // namespace

PairLoss bradley_terry_loss(const PairValues& scores, double margin, double center_coef) {
  const double x = scores.chosen - scores.rejected - margin;
  const double sum = scores.chosen + scores.rejected;
  const double slope = sigmoid(x) - 1, center = 2 * center_coef * sum;
  return {.loss = softplus_of_minus(x) + center_coef * sum * sum,
          .slopes = {slope + center, -slope + center},
          .rewards = scores};
}

PairLoss dpo_loss(const DpoConfig& config, const PairValues& policy, const PairValues& reference,
                  const PairValues& num_tokens) {
  const double beta = config.beta, smoothing = config.label_smoothing;
  const PairValues d = {policy.chosen - reference.chosen, policy.rejected - reference.rejected};
  const double x = beta * (d.chosen - d.rejected);
  double loss = 0;
  PairValues slopes;
  switch (config.loss_type) {
    case DpoLoss::kSigmoid: {
      loss = (1 - smoothing) * softplus_of_minus(x) + smoothing * softplus_of_minus(-x);
      const double slope = beta * (sigmoid(x) - (1 - smoothing));
      slopes = {slope, -slope};
      break;
    }
    case DpoLoss::kHinge:
      loss = std::max(0.0, 1 - x);
      if (x < 1) slopes = {-beta, beta};
      break;
    case DpoLoss::kIpo: {
      const double off =
          d.chosen / num_tokens.chosen - d.rejected / num_tokens.rejected - 1 / (2 * beta);
      loss = off * off;
      slopes = {2 * off / num_tokens.chosen, -2 * off / num_tokens.rejected};
      break;
    }
  }
  loss -= config.sft_coef * policy.chosen / num_tokens.chosen;
  slopes.chosen -= config.sft_coef / num_tokens.chosen;
  return {.loss = loss, .slopes = slopes, .rewards = {beta * d.chosen, beta * d.rejected}};
}

}  // namespace gradus::trainer
