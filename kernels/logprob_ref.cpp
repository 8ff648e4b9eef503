// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/internal/logprob_ref.h"

namespace gradus::kernels {

LogitStatsRef logit_stats_ref(const float* logits_V, int64_t v, double temperature) {
  LogitStatsRef stats;
  stats.max = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < v; ++i) stats.max = std::max(stats.max, logits_V[i] / temperature);
  for (int64_t i = 0; i < v; ++i) {
    const double distance = logits_V[i] / temperature - stats.max, e = std::exp(distance);
    stats.sum += e;
    if (e > 0) stats.weighted += distance * e;
  }
  stats.log_sum = std::log(stats.sum);
  return stats;
}

double token_logprob_ref(const LogitStatsRef& stats, double logit, double temperature) {
  return logit / temperature - stats.max - stats.log_sum;
}

double entropy_ref(const LogitStatsRef& stats) {
  return stats.log_sum - stats.weighted / stats.sum;
}

void logprob_backward_ref(const LogprobBackwardParams& params, double* dz_V) {
  const LogitStatsRef stats = logit_stats_ref(params.logits_V, params.v, params.temperature);
  const double h = entropy_ref(stats);
  for (int64_t i = 0; i < params.padded_v; ++i) {
    dz_V[i] = 0;
    if (i >= params.v) continue;
    const double log_p = token_logprob_ref(stats, params.logits_V[i], params.temperature);
    const double p = std::exp(log_p);
    if (p > 0) dz_V[i] = -p * (params.dlogprob + params.dentropy * (log_p + h));
    if (i == params.token) dz_V[i] += params.dlogprob;
    dz_V[i] /= params.temperature;
  }
}

}  // namespace gradus::kernels
