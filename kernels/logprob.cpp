// SPDX-License-Identifier: Apache-2.0
#include "kernels/logprob.h"

#include "common/check.h"
#include "kernels/isa.h"

namespace gradus::kernels {

namespace avx2 {
LogitStats logit_stats(const float* logits_V, int64_t v, float temperature);
void logprob_backward(const LogprobBackwardParams& params);
}  // namespace avx2
namespace avx512 {
LogitStats logit_stats(const float* logits_V, int64_t v, float temperature);
void logprob_backward(const LogprobBackwardParams& params);
}  // namespace avx512

LogitStats logit_stats(const float* logits_V, int64_t v, float temperature) {
  GRADUS_CHECK(v >= 1 && temperature > 0, "logit_stats needs a logit and a temperature above 0");
  return isa() == Isa::kAvx512 ? avx512::logit_stats(logits_V, v, temperature)
                               : avx2::logit_stats(logits_V, v, temperature);
}

float token_logprob(const LogitStats& stats, float logit, float temperature) {
  return (logit / temperature - stats.max) - stats.log_sum;
}

float entropy(const LogitStats& stats) { return stats.log_sum - stats.weighted / stats.sum; }

void logprob_backward(const LogprobBackwardParams& params) {
  GRADUS_CHECK(params.token >= 0 && params.token < params.v && params.v <= params.padded_v,
               "logprob_backward needs 0 <= token < v <= padded_v");
  if (isa() == Isa::kAvx512) {
    avx512::logprob_backward(params);
  } else {
    avx2::logprob_backward(params);
  }
}

}  // namespace gradus::kernels
