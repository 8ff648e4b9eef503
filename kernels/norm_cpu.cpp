// SPDX-License-Identifier: Apache-2.0
#include "kernels/internal/vec.h"
#include "kernels/norm.h"

namespace gradus::kernels::GRADUS_ISA {
namespace {

inline int lanes_left(int64_t i, int64_t end) {
  return end - i < kLanes ? static_cast<int>(end - i) : kLanes;
}

// Sum of squares of x [d] times `scale`.
inline float sum_of_scaled_squares(const float* x, int64_t d, float scale) {
  F32x16 squares = zeros();
  for (int64_t i = 0; i < d; i += kLanes) {
    const F32x16 v = load_first(x + i, lanes_left(i, d)) * broadcast(scale);
    squares = fma(v, v, squares);
  }
  return sum_lanes(squares);
}

// y = x scale rstd w. Rows whose squares overflow fp32 are scaled by kLargeScale first; beside them
// eps is nothing.
inline void store_normed(const float* x, const float* weight, int64_t d, float scale, float rstd,
                         float* y) {
  for (int64_t i = 0; i < d; i += kLanes) {
    const int n = lanes_left(i, d);
    const F32x16 normed = load_first(x + i, n) * broadcast(scale) * broadcast(rstd);
    store_first(y + i, normed * load_first(weight + i, n), n);
  }
}

// 2^-96: squares of the largest floats then stay below 2^64.
constexpr float kLargeScale = 0x1p-96f;

}  // namespace

void rms_norm_rows(const RmsNormParams& params, int64_t begin, int64_t end) {
  const int64_t d = params.d;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = params.x_MD + row * params.x_stride;
    float* y = params.y_MD + row * params.y_stride;
    F32x16 squares = zeros();
    for (int64_t i = 0; i < d; i += kLanes) {
      const F32x16 v = load_first(x + i, lanes_left(i, d));
      squares = fma(v, v, squares);
    }
    const float mean = sum_lanes(squares) / static_cast<float>(d);
    if (__builtin_isinf(mean)) {
      const float scaled_mean = sum_of_scaled_squares(x, d, kLargeScale) / static_cast<float>(d);
      const float rstd = 1.0f / __builtin_sqrtf(scaled_mean);
      store_normed(x, params.weight_D, d, kLargeScale, rstd, y);
      if (params.rstd_M != nullptr) params.rstd_M[row] = rstd * kLargeScale;
      continue;
    }
    const float rstd = 1.0f / __builtin_sqrtf(mean + params.eps);
    const F32x16 scale = broadcast(rstd);
    for (int64_t i = 0; i < d; i += kLanes) {
      const int n = lanes_left(i, d);
      const F32x16 normed = load_first(x + i, n) * scale;
      store_first(y + i, normed * load_first(params.weight_D + i, n), n);
    }
    if (params.rstd_M != nullptr) params.rstd_M[row] = rstd;
  }
}

void layer_norm_rows(const LayerNormParams& params, int64_t begin, int64_t end) {
  const int64_t d = params.d;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = params.x_MD + row * params.x_stride;
    float* y = params.y_MD + row * params.y_stride;
    F32x16 sum = zeros(), squares = zeros();
    for (int64_t i = 0; i < d; i += kLanes) sum = sum + load_first(x + i, lanes_left(i, d));
    const F32x16 mean = broadcast(sum_lanes(sum) / static_cast<float>(d));
    for (int64_t i = 0; i < d; i += kLanes) {
      const int n = lanes_left(i, d);
      const F32x16 distance = select(first_lanes(n), load_first(x + i, n) - mean, zeros());
      squares = fma(distance, distance, squares);
    }
    const float variance = sum_lanes(squares) / static_cast<float>(d);
    const F32x16 rstd = broadcast(1.0f / __builtin_sqrtf(variance + params.eps));
    if (params.mean_M != nullptr) store_first(params.mean_M + row, mean, 1);
    if (params.rstd_M != nullptr) store_first(params.rstd_M + row, rstd, 1);
    for (int64_t i = 0; i < d; i += kLanes) {
      const int n = lanes_left(i, d);
      const F32x16 normed = (load_first(x + i, n) - mean) * rstd;
      store_first(y + i,
                  fma(normed, load_first(params.weight_D + i, n), load_first(params.bias_D + i, n)),
                  n);
    }
  }
}

void layer_norm_backward_rows(const LayerNormBackwardParams& params, int64_t begin, int64_t end) {
  const int64_t d = params.d;
  const float count = static_cast<float>(d);
  for (int64_t row = begin; row < end; ++row) {
    const float* x = params.x_MD + row * params.x_stride;
    const float* dy = params.dy_MD + row * params.dy_stride;
    float* dx = params.dx_MD + row * params.dx_stride;
    const F32x16 mean = broadcast(params.mean_M[row]), rstd = broadcast(params.rstd_M[row]);
    F32x16 sum = zeros(), products = zeros();
    for (int64_t i = 0; i < d; i += kLanes) {
      const int n = lanes_left(i, d);
      const F32x16 g = load_first(dy + i, n) * load_first(params.weight_D + i, n);
      sum = sum + g;  // lanes beyond the row are 0 in g
      products = fma(g, (load_first(x + i, n) - mean) * rstd, products);
    }
    const F32x16 mean_g = broadcast(sum_lanes(sum) / count);
    const F32x16 mean_gn = broadcast(sum_lanes(products) / count);
    for (int64_t i = 0; i < d; i += kLanes) {
      const int n = lanes_left(i, d);
      const F32x16 g = load_first(dy + i, n) * load_first(params.weight_D + i, n);
      const F32x16 normed = (load_first(x + i, n) - mean) * rstd;
      store_first(dx + i, fnma(normed, mean_gn, g - mean_g) * rstd, n);
    }
  }
}

void layer_norm_backward_columns(const LayerNormBackwardParams& params, int64_t begin,
                                 int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = lanes_left(i, end);
    F32x16 sum = load_first(params.dweight_D + i, n);
    for (int64_t row = 0; row < params.m; ++row) {
      const F32x16 normed =
          (load_first(params.x_MD + row * params.x_stride + i, n) - broadcast(params.mean_M[row])) *
          broadcast(params.rstd_M[row]);
      sum = fma(load_first(params.dy_MD + row * params.dy_stride + i, n), normed, sum);
    }
    store_first(params.dweight_D + i, sum, n);
  }
}

void rms_norm_backward_rows(const RmsNormBackwardParams& params, int64_t begin, int64_t end) {
  const int64_t d = params.d;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = params.x_MD + row * params.x_stride;
    const float* dy = params.dy_MD + row * params.dy_stride;
    float* dx = params.dx_MD + row * params.dx_stride;
    const float rstd = params.rstd_M[row];
    F32x16 products = zeros();
    for (int64_t i = 0; i < d; i += kLanes) {
      const int n = lanes_left(i, d);
      const F32x16 g = load_first(dy + i, n) * load_first(params.weight_D + i, n);
      products = fma(g, load_first(x + i, n), products);
    }
    const float mean = sum_lanes(products) / static_cast<float>(d);
    // The square of a root this small is no normal float.
    const float correction = rstd < 0x1p-60f ? rstd * (rstd * mean) : rstd * rstd * mean;
    for (int64_t i = 0; i < d; i += kLanes) {
      const int n = lanes_left(i, d);
      const F32x16 g = load_first(dy + i, n) * load_first(params.weight_D + i, n);
      const F32x16 inner = fnma(load_first(x + i, n), broadcast(correction), g);
      F32x16 value = inner * broadcast(rstd);
      if (params.accumulate) value = load_first(dx + i, n) + value;
      store_first(dx + i, value, n);
    }
  }
}

void rms_norm_backward_columns(const RmsNormBackwardParams& params, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = lanes_left(i, end);
    F32x16 sum = load_first(params.dweight_D + i, n);
    for (int64_t row = 0; row < params.m; ++row) {
      const F32x16 normed =
          load_first(params.x_MD + row * params.x_stride + i, n) * broadcast(params.rstd_M[row]);
      sum = fma(load_first(params.dy_MD + row * params.dy_stride + i, n), normed, sum);
    }
    store_first(params.dweight_D + i, sum, n);
  }
}

void add_range(float* dst, const float* src, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = lanes_left(i, end);
    store_first(dst + i, load_first(dst + i, n) + load_first(src + i, n), n);
  }
}

void column_sums_range(const float* dy, int64_t stride, int64_t m, int64_t begin, int64_t end,
                       float* db) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = lanes_left(i, end);
    F32x16 sum = load_first(db + i, n);
    for (int64_t row = 0; row < m; ++row) sum = sum + load_first(dy + row * stride + i, n);
    store_first(db + i, sum, n);
  }
}

}  // namespace gradus::kernels::GRADUS_ISA
