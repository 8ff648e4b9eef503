// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// Log-softmax statistics of one row of logits, shared bit for bit by the sampler, `gradus logprobs`
// and the trainer (FlashSampling's free log-sum-exp, one pass). With x = z / T in fp32, over fixed
// blocks of the vocabulary from 0 in increasing order, each with a fixed lane layout, merged in
// order:
//   max = max x,  sum = sum exp(x - max),  weighted = sum (x - max) exp(x - max)
// The value depends on z, V and T only. Own exp and log: libm differs between hosts.
struct LogitStats {
  float max = 0;
  float sum = 0;
  float weighted = 0;
  float log_sum = 0;  // log(sum) by our own log
};

// logits_V [V], V >= 1, all finite or -inf (at least one finite); temperature > 0.
LogitStats logit_stats(const float* logits_V, int64_t v, float temperature);

// log p(token) = (z / T - max) - log_sum, in this order of roundings.
float token_logprob(const LogitStats& stats, float logit, float temperature);

// Shannon entropy in nats: log_sum - weighted / sum.
float entropy(const LogitStats& stats);

// Gradient with respect to the logits, in place over them:
//   dz[i] = (dlogprob (1[i = token] - p_i) - dentropy p_i (log p_i + H)) / T,  p = softmax(z / T).
// Columns [v, padded_v) are set to 0, so that the row can feed a gemm.
struct LogprobBackwardParams {
  float* logits_V = nullptr;  // in: z; out: dz
  int64_t v = 0, padded_v = 0;
  LogitStats stats;  // of the same row and temperature
  float temperature = 1;
  int32_t token = 0;  // in [0, V)
  float dlogprob = 0, dentropy = 0;
};
void logprob_backward(const LogprobBackwardParams& params);

}  // namespace gradus::kernels
