// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// SwiGLU (Shazeer 2020, arXiv:2002.05202): y = silu(gate) * up, silu(g) = g / (1 + exp(-g)), fp32.
// Rows of gate_up hold the gates in columns [0, I) and the ups in columns [up_offset, up_offset +
// I). Elementwise, so independent of the other rows. No shared state; parallel over
// common/parallel.h.
struct SwigluParams {
  const float* gate_up = nullptr;  // [M, ...], rows gate_up_stride apart
  int64_t gate_up_stride = 0;
  int64_t up_offset = 0;
  float* y_MI = nullptr;  // out [M, I], rows y_stride apart
  int64_t y_stride = 0;
  int64_t m = 0, i = 0;
};
void swiglu(const SwigluParams& params);

// In place over gate_up: gate <- dy up s (1 + g (1 - s)), up <- dy g s, with s = 1 / (1 + exp(-g)).
struct SwigluBackwardParams {
  float* gate_up = nullptr;
  int64_t gate_up_stride = 0;
  int64_t up_offset = 0;
  const float* dy_MI = nullptr;  // [M, I], rows dy_stride apart
  int64_t dy_stride = 0;
  int64_t m = 0, i = 0;
};
void swiglu_backward(const SwigluBackwardParams& params);

// GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) in its exact form, y = x (1 + erf(x / sqrt 2))
// / 2, fp32. erf is within 3e-7 everywhere.
struct GeluParams {
  const float* x_MI = nullptr;  // [M, I], rows x_stride apart
  int64_t x_stride = 0;
  float* y_MI = nullptr;  // out [M, I], rows y_stride apart; may be x
  int64_t y_stride = 0;
  int64_t m = 0, i = 0;
};
void gelu(const GeluParams& params);

// dx = dy (Phi(x) + x phi(x)), Phi and phi of the normal distribution.
struct GeluBackwardParams {
  const float* x_MI = nullptr;  // the forward's input, rows x_stride apart
  int64_t x_stride = 0;
  float* dy_MI = nullptr;  // in: dy, out: dx; rows dy_stride apart
  int64_t dy_stride = 0;
  int64_t m = 0, i = 0;
};
void gelu_backward(const GeluBackwardParams& params);

}  // namespace gradus::kernels
