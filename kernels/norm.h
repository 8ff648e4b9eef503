// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467): y = x * rstd * w, rstd = 1 / sqrt(mean(x^2)
// + eps). Each row by itself, sums over 16 fixed lanes: results do not depend on the other rows.
// fp32.
//
// Letters: M rows, D row width. No shared state; parallel over common/parallel.h.
struct RmsNormParams {
  const float* x_MD = nullptr;  // [M, D], rows x_stride apart
  int64_t x_stride = 0;
  const float* weight_D = nullptr;  // [D]
  float* y_MD = nullptr;            // out [M, D], rows y_stride apart; may be x
  int64_t y_stride = 0;
  float* rstd_M = nullptr;  // out [M] or null
  int64_t m = 0, d = 0;
  float eps = 1e-5f;
};
void rms_norm(const RmsNormParams& params);

// dx (+)= rstd (dy w - x rstd^2 mean(dy w x)) and dw += rows' dy x rstd, an fma chain over rows in
// order.
struct RmsNormBackwardParams {
  const float* dy_MD = nullptr;  // [M, D], rows dy_stride apart
  int64_t dy_stride = 0;
  const float* x_MD = nullptr;  // the forward's input
  int64_t x_stride = 0;
  const float* weight_D = nullptr;
  const float* rstd_M = nullptr;  // from the forward
  float* dx_MD = nullptr;         // in/out [M, D], rows dx_stride apart; may be dy
  int64_t dx_stride = 0;
  bool accumulate = false;     // add to dx instead of overwriting it
  float* dweight_D = nullptr;  // in/out [D], continued; null: not wanted
  int64_t m = 0, d = 0;
};
void rms_norm_backward(const RmsNormBackwardParams& params);

// LayerNorm (Ba et al. 2016, arXiv:1607.06450): y = (x - mean) * rstd * w + b, rstd = 1 /
// sqrt(mean((x - mean)^2) + eps). Two passes, so that nothing cancels; rows and lanes as above.
struct LayerNormParams {
  const float* x_MD = nullptr;  // [M, D], rows x_stride apart
  int64_t x_stride = 0;
  const float* weight_D = nullptr;  // [D]
  const float* bias_D = nullptr;    // [D]
  float* y_MD = nullptr;            // out [M, D], rows y_stride apart; may be x
  int64_t y_stride = 0;
  float* mean_M = nullptr;  // out [M] each, or null
  float* rstd_M = nullptr;
  int64_t m = 0, d = 0;
  float eps = 1e-12f;
};
void layer_norm(const LayerNormParams& params);

// With n = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - n mean(g n)), and dw += rows' dy
// n, a chain over rows in order. db is column_sums of dy.
struct LayerNormBackwardParams {
  const float* dy_MD = nullptr;  // [M, D], rows dy_stride apart
  int64_t dy_stride = 0;
  const float* x_MD = nullptr;  // the forward's input
  int64_t x_stride = 0;
  const float* weight_D = nullptr;
  const float* mean_M = nullptr;  // from the forward
  const float* rstd_M = nullptr;
  float* dx_MD = nullptr;  // out [M, D], rows dx_stride apart; may be dy
  int64_t dx_stride = 0;
  float* dweight_D = nullptr;  // in/out [D], continued
  int64_t m = 0, d = 0;
};
void layer_norm_backward(const LayerNormBackwardParams& params);

// dst[m, d] += src[m, d]; rows contiguous, count floats in all.
void add_in_place(float* dst, const float* src, int64_t count);

// db[n] += rows' dy[m, n]: a chain of additions over rows in order.
void column_sums(const float* dy_MN, int64_t dy_stride, int64_t m, int64_t n, float* db_N);

}  // namespace gradus::kernels
