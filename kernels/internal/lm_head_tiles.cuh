// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/internal/hopper.cuh"
#include "kernels/internal/lm_head_args.h"
#include "kernels/internal/wgmma.cuh"

// The matrix product under the head's kernels (lm_head_cuda.cu, lm_head_gradient_cuda.cu): tiles of
// 128 vocabulary ids by rows of h, kept in registers, of persistent blocks of three warpgroups: one
// copies, two multiply. S, the shape, has
//   kRows       of a warpgroup's tile
//   kSplitRows  the two take halves of the rows of one block of ids; else alternate blocks
//   kTileRows   of both
//   kCluster    blocks of threads that share their h by multicast
//   kStages, kWeightBytes, kStageBytes  of the ring
// and Args num_blocks (of 128 ids), row_tiles and d.
namespace gradus::kernels::cuda {

inline constexpr int kDepth = 64;  // of a stage: 128 bytes of bf16, the swizzle's width
inline constexpr int kThreads = 384;
inline constexpr int kConsumers = 256;
inline constexpr int kSharedBytes = 227 * 1024;

struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  template <int kStages>
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// Work of this block: pairs (or single) blocks of the vocabulary for each tile of rows, all tiles
// of one pair at about the same time, so that L2 serves the weights once.
template <class S>
struct Work {
  int step, end, stride, row_tiles;
  template <class Args>
  __device__ explicit Work(const Args& args) {
    const int pairs = (args.num_blocks + S::kCluster - 1) / S::kCluster;
    step = static_cast<int>(blockIdx.x) / S::kCluster;
    stride = static_cast<int>(gridDim.x) / S::kCluster;
    row_tiles = args.row_tiles;
    end = pairs * row_tiles;
  }
  __device__ int row_tile() const { return step % row_tiles; }
  __device__ int block(int rank) const { return step / row_tiles * S::kCluster + rank; }
};

// --- the copying warpgroup ---

template <class S, class Args>
__device__ void copy_tiles(const CUtensorMap& w_map, const CUtensorMap& h_map, const Args& args,
                           uint8_t* stages, uint64_t* full, uint64_t* empty, Ring& ring) {
  const int rank = S::kCluster == 1 ? 0 : static_cast<int>(block_in_cluster());
  const int depth_steps = (args.d + kDepth - 1) / kDepth;
  const uint64_t weight_policy = args.row_tiles == 1 ? kEvictFirst : kEvictNormal;
  for (Work<S> work(args); work.step < work.end; work.step += work.stride) {
    const int id = work.block(rank) * kHeadBlock, row = work.row_tile() * S::kTileRows;
    for (int k = 0; k < depth_steps; ++k, ring.advance<S::kStages>()) {
      uint8_t* stage = stages + ring.stage * S::kStageBytes;
      uint64_t* arrived = full + ring.stage;
      barrier_wait(empty + ring.stage, ring.phase ^ 1);
      barrier_expect_bytes(arrived, S::kStageBytes);
      copy_box(stage, &w_map, arrived, k * kDepth, id, weight_policy);
      if constexpr (S::kCluster == 1) {
        copy_box(stage + S::kWeightBytes, &h_map, arrived, k * kDepth, row, kEvictLast);
      } else {
        // Each block of the cluster copies its part of the rows to both.
        constexpr int kPart = S::kTileRows / S::kCluster;
        copy_box_to_blocks(stage + S::kWeightBytes + rank * kPart * kDepth * 2, &h_map, arrived,
                           k * kDepth, row + rank * kPart, (1 << S::kCluster) - 1, kEvictLast);
      }
    }
  }
}

// --- the multiplying warpgroups ---

template <class S>
__device__ void release(uint64_t* empty, int stage) {
  if (threadIdx.x % 32 != 0) return;
  if constexpr (S::kCluster == 1) {
    barrier_arrive(empty + stage);
  } else {
    for (uint32_t block = 0; block < S::kCluster; ++block) barrier_arrive_at(empty + stage, block);
  }
}

// acc[half] = W rows (64 half ..) x h rows, over all of d in order. Of warpgroups that split rows
// the second begins its first tile as late as the ring allows: they stay that far apart, and what
// one reduces meanwhile the other multiplies.
template <class S>
__device__ void multiply(float (&acc)[2][S::kRows / 2], int depth_steps, int group,
                         const uint8_t* stages, uint64_t* full, uint64_t* empty, Ring& ring,
                         bool first_tile) {
  constexpr int kStaggerBarrier = 4;
  const int ahead = depth_steps < S::kStages ? depth_steps : S::kStages;
  const bool stagger = S::kSplitRows && first_tile;
  if (stagger && group == 1) named_barrier(kStaggerBarrier, kConsumers);
  using Product = Wgmma<S::kRows, 0, 0>;
  int previous = -1;
  for (int k = 0; k < depth_steps; ++k) {
    const uint8_t* w = stages + ring.stage * S::kStageBytes;
    const uint8_t* h = w + S::kWeightBytes + (S::kSplitRows ? group * S::kRows * kDepth * 2 : 0);
    barrier_wait(full + ring.stage, ring.phase);
    const uint64_t a0 = descriptor_k_major(w), a1 = descriptor_k_major(w + 64 * kDepth * 2);
    const uint64_t b = descriptor_k_major(h);
    pin_registers(acc[0]);
    pin_registers(acc[1]);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      Product::run(acc[0], a0 + 2 * step, b + 2 * step, k + step > 0);
      Product::run(acc[1], a1 + 2 * step, b + 2 * step, k + step > 0);
    }
    wgmma_commit();
    if (stagger && group == 0 && k == ahead - 1) named_arrive(kStaggerBarrier, kConsumers);
    if (previous >= 0) {
      wgmma_wait<1>();
      release<S>(empty, previous);
    }
    previous = ring.stage;
    ring.advance<S::kStages>();
  }
  wgmma_wait<0>();
  pin_registers(acc[0]);
  pin_registers(acc[1]);
  release<S>(empty, previous);
}

}  // namespace gradus::kernels::cuda
