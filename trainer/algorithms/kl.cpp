// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithms/kl.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "trainer/algorithms/corrections.h"

namespace gradus::trainer {
namespace {

constexpr double kMaxK3 = 10.0;

KlTerm k3_of(double d) {
  const double held = std::clamp(d, -kMaxLogRatio, kMaxLogRatio);
  const double value = std::exp(held) - held - 1;
  if (value > kMaxK3) return {kMaxK3, 0};
  return {value, held == d ? 1 - std::exp(d) : 0.0};
}

// The value of `term` with the gradient of k2; moves with lp as k2 does.
KlTerm straight_through(double value_at_stopped, double d, double stopped_d) {
  return {value_at_stopped + d * d / 2 - stopped_d * stopped_d / 2, -d};
}

}  // namespace

KlTerm kl_term(KlKind kind, double logprob, double stopped, double old_logprob,
               double reference_logprob) {
  const double d = reference_logprob - logprob;
  const double stopped_d = reference_logprob - stopped;
  switch (kind) {
    case KlKind::kK1:
      return {-d, 1};
    case KlKind::kAbs:
      return {std::fabs(d), d > 0 ? -1.0 : (d < 0 ? 1.0 : 0.0)};
    case KlKind::kK2:
      return {d * d / 2, -d};
    case KlKind::kK3:
      return k3_of(d);
    case KlKind::kK3Corrected: {
      const double log_ratio = logprob - old_logprob;
      const double ratio = exp_held(log_ratio);
      const KlTerm k3 = k3_of(d);
      const bool moves = std::fabs(log_ratio) <= kMaxLogRatio;
      return {ratio * k3.value, ratio * (k3.slope + (moves ? k3.value : 0.0))};
    }
    case KlKind::kK1Straight:
      return straight_through(-stopped_d, d, stopped_d);
    case KlKind::kK3Straight:
      return straight_through(k3_of(stopped_d).value, d, stopped_d);
  }
  GRADUS_CHECK(false, "KL kind out of range");
}

double adapted_kl_coef(const KlConfig& config, double coef, double measured, double num_sequences) {
  const double error = std::clamp(measured / config.target - 1, -0.2, 0.2);
  return coef * (1 + error * num_sequences / config.horizon);
}

}  // namespace gradus::trainer
