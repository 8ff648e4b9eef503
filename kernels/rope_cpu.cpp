// SPDX-License-Identifier: Apache-2.0
#include "kernels/internal/vec.h"
#include "kernels/rope.h"

namespace gradus::kernels::GRADUS_ISA {

void rope_rows(const RopeParams& params, int64_t begin, int64_t end) {
  const int64_t half = params.head_width / 2;
  const float sign = params.inverse ? -1.0f : 1.0f;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t angle = params.positions_T[row] * half;
    for (int64_t h = 0; h < params.num_heads; ++h) {
      float* x = params.x_THK + row * params.x_stride + h * params.head_width;
      for (int64_t i = 0; i < half; i += kLanes) {
        const int n = half - i < kLanes ? static_cast<int>(half - i) : kLanes;
        const F32x16 c = load_first(params.cosines + angle + i, n);
        const F32x16 s = load_first(params.sines + angle + i, n) * broadcast(sign);
        const F32x16 a = load_first(x + i, n), b = load_first(x + half + i, n);
        store_first(x + i, fnma(b, s, a * c), n);
        store_first(x + half + i, fma(a, s, b * c), n);
      }
    }
  }
}

}  // namespace gradus::kernels::GRADUS_ISA
