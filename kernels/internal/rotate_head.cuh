// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/internal/device_math.cuh"

namespace gradus::kernels::cuda {

// Eight columns of a head and their partners, without norms: what rotate_head.cuh does to them, or,
// backward, the turn the other way round.
template <bool kBackward>
__device__ inline void turn(Eight& low, Eight& high, const float* cosines, const float* sines) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 a = __bfloat1622float2(low.pairs[j]), b = __bfloat1622float2(high.pairs[j]);
    const float2 c = *reinterpret_cast<const float2*>(cosines + 2 * j);
    float2 s = *reinterpret_cast<const float2*>(sines + 2 * j);
    if (kBackward) s = {-s.x, -s.y};
    low.pairs[j] = __floats2bfloat162_rn(__fmaf_rn(-b.x, s.x, __fmul_rn(a.x, c.x)),
                                         __fmaf_rn(-b.y, s.y, __fmul_rn(a.y, c.y)));
    high.pairs[j] = __floats2bfloat162_rn(__fmaf_rn(a.x, s.x, __fmul_rn(b.x, c.x)),
                                          __fmaf_rn(a.y, s.y, __fmul_rn(b.y, c.y)));
  }
}

// One head of q, k or v in the registers of a warp: lane l holds columns l + 32 j and, kWidth / 2
// further, their partners in the rotation.
template <int kWidth>
struct HeadColumns {
  static constexpr int kHalf = kWidth / 2, kPairs = kHalf / 32;
  float low[kPairs], high[kPairs];

  __device__ void load(const __nv_bfloat16* x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      low[j] = __bfloat162float(x[lane + 32 * j]);
      high[j] = __bfloat162float(x[lane + 32 * j + kHalf]);
    }
  }
  // RMSNorm, if `norm` is given, and rotation by the angles of `position`.
  __device__ void rotate(const float* norm, float eps, const float* cosines, const float* sines,
                         int position) {
    const int lane = threadIdx.x % 32;
    if (norm != nullptr) {
      float squares = 0;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        squares = __fmaf_rn(low[j], low[j], squares);
        squares = __fmaf_rn(high[j], high[j], squares);
      }
      const float mean = __fdiv_rn(warp_sum(squares), static_cast<float>(kWidth));
      const float rstd = __frcp_rn(__fsqrt_rn(__fadd_rn(mean, eps)));
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        low[j] = __fmul_rn(__fmul_rn(low[j], rstd), norm[lane + 32 * j]);
        high[j] = __fmul_rn(__fmul_rn(high[j], rstd), norm[lane + 32 * j + kHalf]);
      }
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int64_t angle = static_cast<int64_t>(position) * kHalf + lane + 32 * j;
      const float cosine = cosines[angle], sine = sines[angle];
      const float a = low[j], b = high[j];
      low[j] = __fmaf_rn(-b, sine, __fmul_rn(a, cosine));
      high[j] = __fmaf_rn(a, sine, __fmul_rn(b, cosine));
    }
  }
  __device__ void store(__nv_bfloat16* x) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      x[lane + 32 * j] = __float2bfloat16_rn(low[j]);
      x[lane + 32 * j + kHalf] = __float2bfloat16_rn(high[j]);
    }
  }
  // As row `in_page` of a page, whose 16-byte parts are in the order part ^ (row % 8).
  __device__ void store_in_page(__nv_bfloat16* row, int in_page) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int column = lane + 32 * j, partner = column + kHalf;
      row[((column / 8) ^ (in_page & 7)) * 8 + column % 8] = __float2bfloat16_rn(low[j]);
      row[((partner / 8) ^ (in_page & 7)) * 8 + partner % 8] = __float2bfloat16_rn(high[j]);
    }
  }
};

}  // namespace gradus::kernels::cuda
