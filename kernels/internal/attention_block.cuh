// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/internal/device_math.cuh"
#include "kernels/internal/hopper.cuh"

// The arithmetic of attention that decoding, prefill and training share: sixteen query rows of a
// warp against one block of 64 keys, and how blocks are merged.
namespace gradus::kernels::cuda {

inline constexpr int kBlockKeys = 64;
inline constexpr int kChunkBlocks = 8;

// d += a b, 16 x 8 outputs, 16 steps of k.
__device__ inline void mma_16x8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Address of the 16-byte part `part` of row `row` of a block in shared memory.
template <int kWidth>
__device__ inline uint32_t part_address(uint32_t block, int row, int part) {
  return block + static_cast<uint32_t>(row * kWidth * 2 + (part ^ (row & 7)) * 16);
}

// What one block of keys, or several, say of the two rows g and g + 8 of a thread: largest score
// (in units of log 2), sum of exponentials, weighted values. o[j][2 h + i] belongs to row g + 8 h
// and column 8 j + 2 c + i, with g = lane / 4, c = lane % 4. Nothing yet: max -inf, all else 0.
template <int kWidth>
struct Attended {
  float max[2], sum[2];
  float o[kWidth / 8][4];
  __device__ void clear() {
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
  }
};

// Rows at positions row_position[h] attend to the block's keys at first_key + i up to themselves.
// q: A fragments; keys, values: shared addresses, 64 rows each.
template <int kWidth>
__device__ inline void attend_block(const uint32_t (&q)[kWidth / 16][4], uint32_t keys,
                                    uint32_t values, int first_key, const int (&row_position)[2],
                                    float scale_log2, Attended<kWidth>& out) {
  const int lane = threadIdx.x % 32, c = lane % 4, matrix = lane / 8, r = lane % 8;
  float s[8][4];
#pragma unroll
  for (int j = 0; j < 8; ++j) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
  for (int p = 0; p < kWidth / 32; ++p) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      uint32_t b[4];
      load_matrices(b, part_address<kWidth>(keys, 8 * j + r, 4 * p + matrix));
      mma_16x8(s[j], q[2 * p], b[0], b[1]);
      mma_16x8(s[j], q[2 * p + 1], b[2], b[3]);
    }
  }
  uint32_t weights[4][4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int last = row_position[h] - first_key - 2 * c;  // of the columns 8 j + i
    float max = -INFINITY;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[j][2 * h + i];
        x = 8 * j + i <= last ? __fmul_rn(x, scale_log2) : -INFINITY;
        max = fmaxf(max, x);
      }
    }
    max = fmaxf(max, __shfl_xor_sync(0xFFFFFFFFu, max, 1));
    max = fmaxf(max, __shfl_xor_sync(0xFFFFFFFFu, max, 2));
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[j][2 * h + i];
        x = max == -INFINITY ? 0.0f : exp2_fast(__fsub_rn(x, max));
        sum = __fadd_rn(sum, x);
      }
    }
    sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 2));
    out.max[h] = max;
    out.sum[h] = sum;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      weights[j / 2][(j % 2) * 2 + h] = pack_bf16(s[j][2 * h], s[j][2 * h + 1]);
    }
  }
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j) out.o[j][0] = out.o[j][1] = out.o[j][2] = out.o[j][3] = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int d = 0; d < kWidth / 16; ++d) {
      uint32_t b[4];
      load_matrices_transposed(
          b, part_address<kWidth>(values, 16 * k + (matrix & 1) * 8 + r, 2 * d + matrix / 2));
      mma_16x8(out.o[2 * d], weights[k], b[0], b[1]);
      mma_16x8(out.o[2 * d + 1], weights[k], b[2], b[3]);
    }
  }
}

// Factors of what was there and of what comes. The new must have seen a key.
struct Merge {
  float max, old_factor, new_factor;
  __device__ Merge(float old_max, float new_max) {
    max = fmaxf(old_max, new_max);
    old_factor = old_max == -INFINITY ? 0.0f : exp2_fast(__fsub_rn(old_max, max));
    new_factor = exp2_fast(__fsub_rn(new_max, max));
  }
  __device__ float operator()(float old_value, float new_value) const {
    return __fmaf_rn(new_value, new_factor, __fmul_rn(old_value, old_factor));
  }
};

template <int kWidth>
__device__ inline void merge_into(Attended<kWidth>& total, const Attended<kWidth>& next) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (next.max[h] == -INFINITY) continue;  // masked as a whole
    const Merge merge(total.max[h], next.max[h]);
    total.max[h] = merge.max;
    total.sum[h] = merge(total.sum[h], next.sum[h]);
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      total.o[j][2 * h] = merge(total.o[j][2 * h], next.o[j][2 * h]);
      total.o[j][2 * h + 1] = merge(total.o[j][2 * h + 1], next.o[j][2 * h + 1]);
    }
  }
}

__device__ inline float normalised(float o, float sum) { return __fmul_rn(o, __frcp_rn(sum)); }

// `bytes` (a multiple of 16) from global to shared memory.
__device__ inline void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

}  // namespace gradus::kernels::cuda
