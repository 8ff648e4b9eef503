// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2) on `count` weights, in place:
//   g = gradient * gradient_scale
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
//   w = w - learning_rate weight_decay w
//   w = w - learning_rate / correction1 * m / (sqrt(v / correction2) + eps),  correction_i = 1 -
//   beta_i^step
// Elementwise, one rounding per operation: bits do not depend on threads or instruction set.
struct AdamWParams {
  float* weights = nullptr;
  const float* gradients = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  int64_t count = 0;
  float gradient_scale = 1;  // of clipping
  float learning_rate = 0;
  float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;
  float weight_decay = 0;
  float correction1 = 1, correction2 = 1;
};
void adamw(const AdamWParams& params);

// Sum of squares in double: 16 lanes of float over blocks of kSquaresBlock elements, the blocks'
// sums (floats) in order. The order depends on `count` alone. NaN and infinity come through.
inline constexpr int64_t kSquaresBlock = 4096;
double sum_of_squares(const float* values, int64_t count);

}  // namespace gradus::kernels
