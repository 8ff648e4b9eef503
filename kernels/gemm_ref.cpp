// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/internal/gemm_ref.h"

namespace gradus::kernels {
namespace {

// Where w[n][k] stands in the panels.
int64_t panel_index(int64_t n, int64_t k, int64_t num_k) {
  return (n / kPanelWidth * num_k + k) * kPanelWidth + n % kPanelWidth;
}

}  // namespace

void gemm_forward_ref(const GemmForwardParams& params) {
  for (int64_t m = 0; m < params.m; ++m) {
    for (int64_t n = 0; n < padded(params.n); ++n) {
      float sum = 0;
      for (int64_t k = 0; k < params.k; ++k) {
        sum = std::fma(params.x_MK[m * params.x_stride + k],
                       params.w_packed[panel_index(n, k, params.k)], sum);
      }
      if (params.bias_N != nullptr) sum += params.bias_N[n];
      params.y_MN[m * params.y_stride + n] = sum;
    }
  }
}

void gemm_backward_input_ref(const GemmBackwardInputParams& params) {
  for (int64_t m = 0; m < params.m; ++m) {
    for (int64_t k = 0; k < params.k; ++k) {
      float& dx = params.dx_MK[m * params.dx_stride + k];
      float sum = params.accumulate ? dx : 0;
      for (int64_t n = 0; n < params.n; ++n) {
        sum = std::fma(params.dy_MN[m * params.dy_stride + n],
                       params.w_packed[panel_index(n, k, params.k)], sum);
      }
      dx = sum;
    }
  }
}

void gemm_backward_weight_ref(const GemmBackwardWeightParams& params) {
  for (int64_t n = 0; n < params.n; ++n) {
    for (int64_t k = 0; k < params.k; ++k) {
      float& dw = params.dw_packed[panel_index(n, k, params.k)];
      float sum = params.accumulate ? dw : 0;
      for (int64_t m = 0; m < params.m; ++m) {
        sum = std::fma(params.dy_MN[m * params.dy_stride + n], params.x_MK[m * params.x_stride + k],
                       sum);
      }
      dw = sum;
    }
  }
}

}  // namespace gradus::kernels
