// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation.h"
#include "kernels/internal/vec.h"

namespace gradus::kernels::GRADUS_ISA {

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
