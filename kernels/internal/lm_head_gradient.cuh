// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/internal/lm_head_math.cuh"

// From a tile of logits in registers to bf16 in memory, one vocabulary id after the other:
//   out[id, row] = -p (k0 + k1 (x - reference)) + (id is the row's token) at_token
// with x = z / T and p = exp(x - reference). The gradient of the logits is of this form, and so are
// plain exponentials.
namespace gradus::kernels::cuda {

// Of one row: {reference, k0, k1, at_token}.
using RowGradient = float4;

struct GradientPlace {
  __nv_bfloat16* out;  // [ids, row_stride]
  int64_t row_stride;  // a multiple of 8: rows past the end are written up to here
  int first_row;       // of the tile
  int first_id;        // of the tile, counted in out
  int num_ids;         // of out
};

// Lane c of each four holds v[0..3], the parts c of four rows; afterwards all four parts of row c.
__device__ inline void transpose_quad(uint32_t (&v)[4]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xFFFFFFFFu, odd ? v[i] : v[i + 1], 1);
    (odd ? v[i] : v[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xFFFFFFFFu, upper ? v[i] : v[i + 2], 2);
    (upper ? v[i] : v[i + 2]) = got;
  }
}

// acc as in lm_head_tiles.cuh: acc[half][4 j + 2 h + i] is id 64 half + 8 h + lane_row, row 8 j +
// 2 (lane % 4) + i. row_of(n) and token_of(n) are of row n of the tile; the token counts from
// the tile's first id. Called by whole warps.
template <int kRows, bool kToken, class RowOf, class TokenOf>
__device__ __forceinline__ void store_gradients(const float (&acc)[2][kRows / 2],
                                                const GradientPlace& place, Scale scale,
                                                int lane_row, RowOf row_of, TokenOf token_of) {
  static_assert(kRows % 32 == 0);
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int j4 = 0; j4 < kRows / 8; j4 += 4) {
    uint32_t packed[4][4];  // [word: id 8 (word % 2) + 64 (word / 2) further][j]
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float dz[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int n = 8 * (j4 + j) + 2 * c + i;
        const RowGradient row = row_of(n);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float x = scaled(acc[w / 2][4 * (j4 + j) + 2 * (w % 2) + i], scale);
          const float d = max_or_nan(x - row.x, -1e4f);  // 0 times what follows is 0
          dz[i][w] = -exp_fast(d) * __fmaf_rn(row.z, d, row.y);
        }
        if constexpr (kToken) {
          const int further = token_of(n) - lane_row;
          if ((further & ~72) == 0) {  // 0, 8, 64 or 72 ids further
#pragma unroll
            for (int w = 0; w < 4; ++w) {
              if (further == w / 2 * 64 + w % 2 * 8) dz[i][w] += row.w;
            }
          }
        }
      }
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(dz[0][w], dz[1][w]);
        packed[w][j] = *reinterpret_cast<const uint32_t*>(&pair);
      }
    }
    const int row = place.first_row + 8 * (j4 + c);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      transpose_quad(packed[w]);
      const int id = place.first_id + lane_row + w / 2 * 64 + w % 2 * 8;
      if (id < place.num_ids && row < place.row_stride) {
        // Read once, by a product that comes after all of it: weights and rows of h stay in L2.
        __stcs(reinterpret_cast<uint4*>(place.out + id * place.row_stride + row),
               uint4{packed[w][0], packed[w][1], packed[w][2], packed[w][3]});
      }
    }
  }
}

}  // namespace gradus::kernels::cuda
