// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/logprob.h"

namespace gradus::kernels {

// The oracle of logprob.h in double precision, as plain loops.
struct LogitStatsRef {
  double max = 0, sum = 0, weighted = 0, log_sum = 0;
};
LogitStatsRef logit_stats_ref(const float* logits_V, int64_t v, double temperature);
double token_logprob_ref(const LogitStatsRef& stats, double logit, double temperature);
double entropy_ref(const LogitStatsRef& stats);

// dz_V [padded_v] of logprob_backward for the logits z in params.logits_V, which stay as they are.
void logprob_backward_ref(const LogprobBackwardParams& params, double* dz_V);

}  // namespace gradus::kernels
