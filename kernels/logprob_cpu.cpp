// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "kernels/internal/vec.h"
#include "kernels/logprob.h"

namespace gradus::kernels::GRADUS_ISA {
namespace {

// Floats of the vocabulary that are summed in 16 lanes before the lanes are added up and the block
// joins the total: 64 additions a lane, so that rounding grows with 64 + V / 1024 terms and not
// with V.
constexpr int64_t kBlock = 1024;

// exp() is 0 below -87.3. Distances stop here, so that -inf logits give 0 * -128 and not 0 * -inf.
// It is the first operand of max(), so that NaN stays NaN.
constexpr float kLowest = -128.0f;

F32x16 load_or_minus_infinity(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  const int n = static_cast<int>(count);
  return select(first_lanes(n), load_first(p, n), broadcast(-__builtin_inff()));
}

// The largest z / T. Division by T > 0 keeps the order, so it comes once, at the end. Four
// independent maxima because one would wait for itself; the order of maxima does not matter, adding
// 0 settles the sign of a zero.
float largest(const float* z, int64_t v, float temperature) {
  F32x16 m[4];
  for (F32x16& part : m) part = broadcast(-__builtin_inff());
  int64_t i = 0;
  for (; i + 4 * kLanes <= v; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) m[j] = max(m[j], load(z + i + j * kLanes));
  }
  for (; i < v; i += kLanes) m[0] = max(m[0], load_or_minus_infinity(z + i, v - i));
  return max_lane(max(max(m[0], m[1]), max(m[2], m[3]))) / temperature + 0.0f;
}

template <bool kUnitTemperature>
void sum_blocks(const float* z, int64_t v, float temperature, LogitStats& stats) {
  const F32x16 t = broadcast(temperature), m = broadcast(stats.max), lowest = broadcast(kLowest);
  for (int64_t begin = 0; begin < v; begin += kBlock) {
    const int64_t end = begin + kBlock < v ? begin + kBlock : v;
    F32x16 sum = zeros(), weighted = zeros();
    const auto add = [&](F32x16 logits) {
      const F32x16 x = kUnitTemperature ? logits : logits / t;  // z / 1 is z
      const F32x16 distance = max(lowest, x - m);
      const F32x16 e = exp(distance);
      sum = sum + e;
      weighted = fma(distance, e, weighted);
    };
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) add(load(z + i));
    if (i < end) add(load_or_minus_infinity(z + i, end - i));
    stats.sum += sum_lanes(sum);
    stats.weighted += sum_lanes(weighted);
  }
}

// (log p, gradient without the token's own 1) for logits, both in lanes.
struct Backward {
  F32x16 t, m, log_sum, h, dlogprob, dentropy, lowest;

  explicit Backward(const LogprobBackwardParams& params)
      : t(broadcast(params.temperature)),
        m(broadcast(params.stats.max)),
        log_sum(broadcast(params.stats.log_sum)),
        h(broadcast(params.stats.log_sum - params.stats.weighted / params.stats.sum)),
        dlogprob(broadcast(params.dlogprob)),
        dentropy(broadcast(params.dentropy)),
        lowest(broadcast(kLowest)) {}
  F32x16 common(F32x16 logits) const {
    const F32x16 log_p = max(lowest, (logits / t - m) - log_sum);
    const F32x16 p = exp(log_p);
    return zeros() - p * fma(dentropy, log_p + h, dlogprob);
  }
};

}  // namespace

LogitStats logit_stats(const float* logits_V, int64_t v, float temperature) {
  LogitStats stats;
  stats.max = largest(logits_V, v, temperature);
  if (temperature == 1.0f) {
    sum_blocks<true>(logits_V, v, temperature, stats);
  } else {
    sum_blocks<false>(logits_V, v, temperature, stats);
  }
  stats.log_sum = log(stats.sum);
  return stats;
}

void logprob_backward(const LogprobBackwardParams& params) {
  const Backward backward(params);
  float* z = params.logits_V;
  const float token_logit = z[params.token];
  int64_t i = 0;
  for (; i + kLanes <= params.v; i += kLanes) {
    store(z + i, backward.common(load(z + i)) / backward.t);
  }
  if (i < params.v) {
    const int n = static_cast<int>(params.v - i);
    store_first(z + i, backward.common(load_first(z + i, n)) / backward.t, n);
  }
  const F32x16 own = backward.common(broadcast(token_logit)) + backward.dlogprob;
  store_first(z + params.token, own / backward.t, 1);
  for (i = params.v; i < params.padded_v; ++i) z[i] = 0;
}

}  // namespace gradus::kernels::GRADUS_ISA
