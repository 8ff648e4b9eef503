// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation.h"
#include "kernels/internal/vec.h"

namespace gradus::kernels::GRADUS_ISA {

namespace {

// erf(x) as x P(x^2) / Q(x^2) on [-4, 4], a minimax fit of degrees 6 and 4 in x^2 (Eigen's); beyond
// 4 the value there, 1 within fp32.
inline F32x16 erf(F32x16 x) {
  const F32x16 t = min(broadcast(4.0f), max(broadcast(-4.0f), x));
  const F32x16 t2 = t * t;
  F32x16 p = broadcast(-2.72614225801306e-10f);
  p = fma(p, t2, broadcast(2.77068142495902e-08f));
  p = fma(p, t2, broadcast(-2.10102402082508e-06f));
  p = fma(p, t2, broadcast(-5.69250639462346e-05f));
  p = fma(p, t2, broadcast(-7.34990630326855e-04f));
  p = fma(p, t2, broadcast(-2.95459980854025e-03f));
  p = fma(p, t2, broadcast(-1.60960333262415e-02f));
  F32x16 q = broadcast(-1.45660718464996e-05f);
  q = fma(q, t2, broadcast(-2.13374055278905e-04f));
  q = fma(q, t2, broadcast(-1.68282697438203e-03f));
  q = fma(q, t2, broadcast(-7.37332916720468e-03f));
  q = fma(q, t2, broadcast(-1.42647390514189e-02f));
  return t * p / q;
}

}  // namespace

void gelu_rows(const GeluParams& params, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = params.x_MI + row * params.x_stride;
    float* y = params.y_MI + row * params.y_stride;
    for (int64_t i = 0; i < params.i; i += kLanes) {
      const int n = params.i - i < kLanes ? static_cast<int>(params.i - i) : kLanes;
      const F32x16 v = load_first(x + i, n);
      const F32x16 half = v * broadcast(0.5f);
      store_first(y + i, fma(half, erf(v * broadcast(0.707106781f)), half), n);
    }
  }
}

void gelu_backward_rows(const GeluBackwardParams& params, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = params.x_MI + row * params.x_stride;
    float* dy = params.dy_MI + row * params.dy_stride;
    for (int64_t i = 0; i < params.i; i += kLanes) {
      const int n = params.i - i < kLanes ? static_cast<int>(params.i - i) : kLanes;
      const F32x16 v = load_first(x + i, n);
      const F32x16 below = fma(erf(v * broadcast(0.707106781f)), broadcast(0.5f), broadcast(0.5f));
      // 1 / sqrt(2 pi)
      const F32x16 density = exp(v * v * broadcast(-0.5f)) * broadcast(0.398942280f);
      store_first(dy + i, load_first(dy + i, n) * fma(v, density, below), n);
    }
  }
}

void swiglu_rows(const SwigluParams& params, int64_t begin, int64_t end) {
  const F32x16 one = broadcast(1.0f);
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = params.gate_up + row * params.gate_up_stride;
    const float* up = gate + params.up_offset;
    float* y = params.y_MI + row * params.y_stride;
    for (int64_t i = 0; i < params.i; i += kLanes) {
      const int n = params.i - i < kLanes ? static_cast<int>(params.i - i) : kLanes;
      const F32x16 g = load_first(gate + i, n);
      const F32x16 silu = g / (one + exp(zeros() - g));
      store_first(y + i, silu * load_first(up + i, n), n);
    }
  }
}

void swiglu_backward_rows(const SwigluBackwardParams& params, int64_t begin, int64_t end) {
  const F32x16 one = broadcast(1.0f);
  for (int64_t row = begin; row < end; ++row) {
    float* gate = params.gate_up + row * params.gate_up_stride;
    float* up = gate + params.up_offset;
    const float* dy = params.dy_MI + row * params.dy_stride;
    for (int64_t i = 0; i < params.i; i += kLanes) {
      const int n = params.i - i < kLanes ? static_cast<int>(params.i - i) : kLanes;
      const F32x16 g = load_first(gate + i, n), d = load_first(dy + i, n);
      const F32x16 s = one / (one + exp(zeros() - g));
      const F32x16 slope = s * fma(g, one - s, one);
      store_first(gate + i, d * load_first(up + i, n) * slope, n);
      store_first(up + i, d * (g * s), n);
    }
  }
}

}  // namespace gradus::kernels::GRADUS_ISA
