// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// The matrix products of a linear layer y = x w^T + b in fp32, forward and backward, under the row
// contract (docs/numerics.md): every output element is one chain of fused multiply-adds over the
// reduction index in increasing order, so its bits depend neither on the number of rows in the
// call, nor on blocking, threads or instruction set. Weights live in panels for good (training and
// rollout share them):
//
//   w_packed[p][k][j] = w[16 p + j][k],  p in [0, ceil(N / 16)), k in [0, K), j in [0, 16)
//
// with zeros where 16 p + j >= N. Rows of y and dy have ceil(N / 16) * 16 columns.
//
// Letters: M rows (tokens), N output features, K input features. Pointers to weights are 64-byte
// aligned. No shared state; parallel over the pool of common/parallel.h. Sizes 0 are allowed and do
// nothing.
inline constexpr int64_t kPanelWidth = 16;

constexpr int64_t padded(int64_t n) { return (n + kPanelWidth - 1) / kPanelWidth * kPanelWidth; }
constexpr int64_t packed_size(int64_t n, int64_t k) { return padded(n) * k; }  // floats

// w [N, K], rows w_stride apart, to and from panels.
void pack_weight(const float* w_NK, int64_t w_stride, int64_t n, int64_t k, float* w_packed);
void unpack_weight(const float* w_packed, int64_t n, int64_t k, float* w_NK, int64_t w_stride);

struct GemmForwardParams {
  const float* x_MK = nullptr;      // [M, K], rows x_stride apart
  int64_t x_stride = 0;             // >= K
  const float* w_packed = nullptr;  // packed_size(N, K)
  const float* bias_N = nullptr;    // [padded(N)] or null; added once, after the chain
  float* y_MN = nullptr;            // out [M, padded(N)], rows y_stride apart; no overlap with x
  int64_t y_stride = 0;             // >= padded(N)
  int64_t m = 0, n = 0, k = 0;
};
// y[m, n] = fma-chain over k from 0 of x[m, k] w[n, k] (+ bias[n]).
void gemm_forward(const GemmForwardParams& params);

struct GemmBackwardInputParams {
  const float* dy_MN = nullptr;  // [M, N], rows dy_stride apart; columns beyond N are not read
  int64_t dy_stride = 0;
  const float* w_packed = nullptr;  // packed_size(N, K)
  float* dx_MK = nullptr;           // out [M, K], rows dx_stride apart
  int64_t dx_stride = 0;
  int64_t m = 0, n = 0, k = 0;
  bool accumulate = false;  // continue the chain from the value in dx instead of 0
};
// dx[m, k] = fma-chain over n of dy[m, n] w[n, k].
void gemm_backward_input(const GemmBackwardInputParams& params);

struct GemmBackwardWeightParams {
  const float* dy_MN = nullptr;  // [M, N], rows dy_stride apart; columns beyond N are not read
  int64_t dy_stride = 0;
  const float* x_MK = nullptr;  // [M, K], rows x_stride apart
  int64_t x_stride = 0;
  float* dw_packed = nullptr;  // in/out packed_size(N, K); padding is left as it is
  int64_t m = 0, n = 0, k = 0;
  bool accumulate = false;  // continue the chain from the value in dw instead of 0
};
// dw[n, k] = fma-chain over m, in row order, of dy[m, n] x[m, k]: splitting the rows over several
// calls with accumulate = true gives the bits of one call.
void gemm_backward_weight(const GemmBackwardWeightParams& params);

}  // namespace gradus::kernels
