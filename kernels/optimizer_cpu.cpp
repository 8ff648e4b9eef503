// SPDX-License-Identifier: Apache-2.0
#include "kernels/internal/vec.h"
#include "kernels/optimizer.h"

namespace gradus::kernels::GRADUS_ISA {
namespace {

inline F32x16 square_root(F32x16 x) {
#if defined(GRADUS_ISA_avx512)
  return {_mm512_sqrt_ps(x.v)};
#else
  return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)};
#endif
}

}  // namespace

void adamw_range(const AdamWParams& params, int64_t begin, int64_t end) {
  const F32x16 scale = broadcast(params.gradient_scale), eps = broadcast(params.eps);
  const F32x16 beta1 = broadcast(params.beta1), rest1 = broadcast(1.0f - params.beta1);
  const F32x16 beta2 = broadcast(params.beta2), rest2 = broadcast(1.0f - params.beta2);
  const F32x16 decay = broadcast(params.learning_rate * params.weight_decay);
  const F32x16 rate = broadcast(params.learning_rate / params.correction1);
  const F32x16 correction2 = broadcast(params.correction2);
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = end - i < kLanes ? static_cast<int>(end - i) : kLanes;
    const F32x16 g = load_first(params.gradients + i, n) * scale;
    const F32x16 m = fma(beta1, load_first(params.m + i, n), rest1 * g);
    const F32x16 v = fma(beta2, load_first(params.v + i, n), rest2 * (g * g));
    F32x16 w = load_first(params.weights + i, n);
    w = fnma(decay, w, w);
    w = w - rate * m / (square_root(v / correction2) + eps);
    store_first(params.m + i, m, n);
    store_first(params.v + i, v, n);
    store_first(params.weights + i, w, n);
  }
}

float block_sum_of_squares(const float* values, int64_t count) {
  F32x16 sums = zeros();
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 x =
        load_first(values + i, count - i < kLanes ? static_cast<int>(count - i) : kLanes);
    sums = fma(x, x, sums);
  }
  return sum_lanes(sums);
}

}  // namespace gradus::kernels::GRADUS_ISA
