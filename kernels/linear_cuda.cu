// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/device_forward_params.h"
#include "kernels/internal/cuda_host.cuh"
#include "kernels/internal/device_math.cuh"
#include "kernels/internal/hopper.cuh"
#include "kernels/internal/wgmma.cuh"

// Matrix products of the forward: rows of x are wgmma's M, rows of w its N, so that few rows of x
// meet narrow tiles of w and the machine is full without ever splitting k. One warp copies boxes of
// 64 columns into a ring of stages, kGroups warpgroups multiply 64 rows each. Weights do not depend
// on the kernel before, so their first stages are asked for before it has ended.
namespace gradus::kernels::cuda {
namespace {

constexpr int kDepth = 64;  // columns of a stage: 128 bytes of bf16, the swizzle's width
constexpr int kMaxStages = 32;
constexpr int kBarrierBytes = 1024;
// A warpgroup reads 64 rows of x also where fewer are there; what it reads past them is not used.
constexpr int kReadPastEnd = 64 * 128;

struct LinearArgs {
  const float* bias;
  void* y;
  const float* addend;
  __nv_bfloat16* kept;  // or null
  int64_t y_stride;
  int t, n, k;
  int x_rows;  // of a tile that are copied
  int stages;
  bool planes;  // the depth is a multiple of 64, so that one copy brings all blocks of a stage
  bool weights_once;    // no other tile reads the same weights
  bool features_first;  // the order of tiles: which of both changes from one to the next
  LinearOutput output;
};

// A warp's 16 rows: acc[4 j + 2 h + i] is row lane / 4 + 8 h, column 8 j + 2 (lane % 4) + i.
template <int kFeatures>
__device__ void store_tile(const float (&acc)[kFeatures / 2], const LinearArgs& args, int first_row,
                           int first_feature) {
  if (first_row >= args.t) return;
  const int lane = threadIdx.x % 32, c = lane % 4;
  const int row = first_row + lane / 4;
  if (args.output == LinearOutput::kSwiglu) {
    if constexpr (kFeatures >= 16) {
#pragma unroll
      for (int j = 0; j < kFeatures / 8; j += 2) {
        const int n = first_feature + 8 * j + 2 * c;
        if (n >= args.n) break;
        float2 bias_gate = {0, 0}, bias_up = {0, 0};
        if (args.bias != nullptr) {
          bias_gate = *reinterpret_cast<const float2*>(args.bias + n);
          bias_up = *reinterpret_cast<const float2*>(args.bias + n + 8);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (row + 8 * half >= args.t) continue;
          const float* gate = acc + 4 * j + 2 * half;
          const float* up = gate + 4;
          auto* y = static_cast<__nv_bfloat16*>(args.y) + (row + 8 * half) * args.y_stride +
                    (first_feature + 8 * j) / 2 + 2 * c;
          const float gates[2] = {__fadd_rn(gate[0], bias_gate.x), __fadd_rn(gate[1], bias_gate.y)};
          const float ups[2] = {__fadd_rn(up[0], bias_up.x), __fadd_rn(up[1], bias_up.y)};
          *reinterpret_cast<__nv_bfloat162*>(y) =
              __floats2bfloat162_rn(swiglu(gates[0], ups[0]), swiglu(gates[1], ups[1]));
          if (args.kept != nullptr) {
            __nv_bfloat16* kept = args.kept + static_cast<int64_t>(row + 8 * half) * args.n + n;
            *reinterpret_cast<__nv_bfloat162*>(kept) = __floats2bfloat162_rn(gates[0], gates[1]);
            *reinterpret_cast<__nv_bfloat162*>(kept + 8) = __floats2bfloat162_rn(ups[0], ups[1]);
          }
        }
      }
    }
    return;
  }
  // What is added to comes in pieces of eight blocks of columns before any of them is written: the
  // compiler cannot know that they are apart.
  constexpr int kBlocks = kFeatures / 8, kAtOnce = kBlocks < 8 ? kBlocks : 8;
#pragma unroll
  for (int first = 0; first < kBlocks; first += kAtOnce) {
    float2 old[kAtOnce][2];
    if (args.output == LinearOutput::kAdd) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int n = first_feature + 8 * (first + j) + 2 * c;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          old[j][half] = {0, 0};
          if (n < args.n && row + 8 * half < args.t) {
            old[j][half] = *reinterpret_cast<const float2*>(args.addend +
                                                            (row + 8 * half) * args.y_stride + n);
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int n = first_feature + 8 * (first + j) + 2 * c;
      if (n >= args.n) break;
      float2 bias = {0, 0};
      if (args.bias != nullptr) bias = *reinterpret_cast<const float2*>(args.bias + n);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (row + 8 * half >= args.t) continue;
        const int64_t place = (row + 8 * half) * args.y_stride + n;
        const float a = __fadd_rn(acc[4 * (first + j) + 2 * half], bias.x);
        const float b = __fadd_rn(acc[4 * (first + j) + 2 * half + 1], bias.y);
        if (args.output == LinearOutput::kStore) {
          *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(args.y) + place) =
              __floats2bfloat162_rn(a, b);
        } else {
          *reinterpret_cast<float2*>(static_cast<float*>(args.y) + place) = {
              __fadd_rn(old[j][half].x, a), __fadd_rn(old[j][half].y, b)};
        }
      }
    }
  }
}

__device__ inline uint32_t packed(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline void store_matrices(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                      uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

constexpr int kPieceBytes = 16 * 128;  // 16 rows of 64 bf16: what a warp turns around at once

// A warp's 16 rows of 64 columns, as a product leaves them (blocks of 8 columns, halves of 8 rows),
// to rows `stride` apart, 128 bytes of each at once. `piece` is the warp's own memory.
__device__ inline void store_piece(const uint32_t (&v)[8][2], uint32_t piece, __nv_bfloat16* to,
                                   int64_t stride, int num_rows, int num_columns) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, r = lane % 8;
  const int row = r + 8 * (matrix & 1);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int block = 2 * i + matrix / 2;
    store_matrices(piece + static_cast<uint32_t>(row * 128 + ((block ^ r) * 16)), v[2 * i][0],
                   v[2 * i][1], v[2 * i + 1][0], v[2 * i + 1][1]);
  }
  __syncwarp();
  const int part = lane % 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int from = lane / 8 + 4 * i;
    uint4 bits;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "r"(piece + static_cast<uint32_t>(from * 128 + ((part ^ (from & 7)) * 16)))
                 : "memory");
    if (from < num_rows && part * 8 < num_columns) {
      *reinterpret_cast<uint4*>(to + from * stride + part * 8) = bits;
    }
  }
  __syncwarp();  // the next piece takes its place
}

// store_tile for many rows: bf16 is turned around in shared memory, so that it leaves in whole
// lines.
template <int kFeatures>
__device__ void store_wide_tile(float (&acc)[kFeatures / 2], const LinearArgs& args, int first_row,
                                int first_feature, uint32_t piece) {
  if (args.output == LinearOutput::kAdd) {
    store_tile<kFeatures>(acc, args, first_row, first_feature);
    return;
  }
  const int c = threadIdx.x % 4;
  // Without a bias zero is added too: minus zero must not leave here and zero elsewhere.
#pragma unroll
  for (int j = 0; j < kFeatures / 8; ++j) {
    const int n = first_feature + 8 * j + 2 * c;
    float2 bias = {0, 0};
    if (args.bias != nullptr && n < args.n) bias = *reinterpret_cast<const float2*>(args.bias + n);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      acc[4 * j + 2 * half] = __fadd_rn(acc[4 * j + 2 * half], bias.x);
      acc[4 * j + 2 * half + 1] = __fadd_rn(acc[4 * j + 2 * half + 1], bias.y);
    }
  }
  const int rows = args.t - first_row;
  const bool is_swiglu = args.output == LinearOutput::kSwiglu;
  __nv_bfloat16* y = static_cast<__nv_bfloat16*>(args.y) + first_row * args.y_stride;
  __nv_bfloat16* products = is_swiglu ? args.kept : y;
  const int64_t products_stride = is_swiglu ? args.n : args.y_stride;
  if (is_swiglu && products != nullptr) products += static_cast<int64_t>(first_row) * args.n;
  uint32_t v[8][2];
  if (products != nullptr) {
#pragma unroll
    for (int j = 0; j < kFeatures / 8; j += 8) {
      const int column = first_feature + 8 * j;
      if (column >= args.n) break;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* from = acc + 4 * (j + i) + 2 * half;
          v[i][half] = packed(from[0], from[1]);
        }
      }
      store_piece(v, piece, products + column, products_stride, rows, args.n - column);
    }
  }
  if (!is_swiglu) return;
#pragma unroll
  for (int j = 0; j < kFeatures / 8; j += 16) {
    const int column = (first_feature + 8 * j) / 2;
    if (2 * column >= args.n) break;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* gate = acc + 4 * (j + 2 * i) + 2 * half;
        const float* up = gate + 4;
        v[i][half] = packed(swiglu(gate[0], up[0]), swiglu(gate[1], up[1]));
      }
    }
    store_piece(v, piece, y + column, args.y_stride, rows, args.n / 2 - column);
  }
}

// Tiles of the kernels for many rows in order: `row` counts those of a cluster.
struct TileOrder {
  int row_tiles, feature_tiles;
  bool features_first;
  __device__ TileOrder(const LinearArgs& args, int rows, int features)
      : row_tiles((args.t + rows - 1) / rows),
        feature_tiles((args.n + features - 1) / features),
        features_first(args.features_first) {}
  __device__ int count() const { return row_tiles * feature_tiles; }
  __device__ int row(int work) const {
    return features_first ? work / feature_tiles : work % row_tiles;
  }
  __device__ int feature(int work) const {
    return features_first ? work % feature_tiles : work / row_tiles;
  }
};

constexpr int kCluster = 2, kWideFeatures = 128;

// For many rows: blocks of threads stay and take one tile of 128 x 128 after the other, and two
// that are neighbours in rows bring each other half of the weights, since what L2 gives would bind.
// The warpgroups take the tiles in turns: while one multiplies, the other's results leave. A stage
// is one warpgroup's.
__global__ __launch_bounds__(384, 1) void wide_kernel(const __grid_constant__ CUtensorMap x_map,
                                                      const __grid_constant__ CUtensorMap w_map,
                                                      const __grid_constant__ LinearArgs args) {
  constexpr int kFeatures = kWideFeatures, kRows = 128;
  extern __shared__ __align__(1024) uint8_t shared[];
  auto* full = reinterpret_cast<uint64_t*>(shared);
  uint64_t* empty = full + kMaxStages;
  constexpr int kRowBytes = kRows * 128, kStageBytes = kRowBytes + kFeatures * 128;
  uint8_t* stages = shared + kBarrierBytes;
  const uint32_t pieces = shared_address(stages + args.stages * kStageBytes);
  const int rank = static_cast<int>(block_in_cluster());
  const TileOrder order(args, kCluster * kRows, kFeatures);
  const int num_work = order.count();
  const int first_work = static_cast<int>(blockIdx.x) / kCluster;
  const int stride = static_cast<int>(gridDim.x) / kCluster;
  const int steps = (args.k + kDepth - 1) / kDepth;
  if (threadIdx.x == 0) {
    prefetch_map(&w_map);
    prefetch_map(&x_map);
    for (int i = 0; i < args.stages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, 4 * kCluster);
    }
    fence_barrier_init();
  }
  cluster_sync();
  start_dependents();
  wait_for_previous();
  int stage = 0;
  uint32_t phase = 0;
  const auto advance = [&](int count) {
    stage += count;
    while (stage >= args.stages) {
      stage -= args.stages;
      phase ^= 1;
    }
  };
  if (threadIdx.x >= 256) {
    give_registers<40>();
    if (threadIdx.x == 256) {
      for (int work = first_work; work < num_work; work += stride) {
        const int row = (order.row(work) * kCluster + rank) * kRows;
        const int feature = order.feature(work) * kFeatures;
        for (int k = 0; k < steps; ++k, advance(1)) {
          uint8_t* to = stages + stage * kStageBytes;
          barrier_wait(empty + stage, phase ^ 1);
          barrier_expect_bytes(full + stage, kStageBytes);
          copy_box(to, &x_map, full + stage, k * kDepth, row, kEvictNormal);
          constexpr int kPart = kFeatures / kCluster;
          copy_box_to_blocks(to + kRowBytes + rank * kPart * 128, &w_map, full + stage, k * kDepth,
                             feature + rank * kPart, (1 << kCluster) - 1, kEvictNormal);
        }
      }
    }
    __syncwarp();
  } else {
    take_registers<232>();
    const int group = static_cast<int>(threadIdx.x) / 128;
    const int warp_row = static_cast<int>(threadIdx.x) % 128 / 32 * 16;
    const auto release = [&](int s) {
      if (threadIdx.x % 32 != 0) return;
      for (uint32_t block = 0; block < kCluster; ++block) barrier_arrive_at(empty + s, block);
    };
    // Whose turn it is to multiply: barrier 1 + group is passed when the other one has asked for
    // all of its products. Parity of a stage tells only two phases apart, so turns must not pass
    // each other.
    if (group == 1) {
      named_arrive(1, 256);
      advance(steps);
    }
    float acc[2][kFeatures / 2];
    for (int work = first_work + group * stride; work < num_work; work += 2 * stride) {
      named_barrier(1 + group, 256);
      int previous = -1;
      for (int k = 0; k < steps; ++k, advance(1)) {
        barrier_wait(full + stage, phase);
        uint8_t* from = stages + stage * kStageBytes;
        const uint64_t a = descriptor_k_major(from);
        const uint64_t b = descriptor_k_major(from + kRowBytes);
        pin_registers(acc[0]);
        pin_registers(acc[1]);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kDepth / 16; ++step) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            Wgmma<kFeatures, 0, 0>::run(acc[half], a + half * (64 * 128 / 16) + 2 * step,
                                        b + 2 * step, k + step > 0);
          }
        }
        wgmma_commit();
        if (previous >= 0) {
          wgmma_wait<1>();
          release(previous);
        }
        previous = stage;
      }
      named_arrive(2 - group, 256);
      wgmma_wait<0>();
      pin_registers(acc[0]);
      pin_registers(acc[1]);
      release(previous);
      advance(steps);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = (order.row(work) * kCluster + rank) * kRows + 64 * half + warp_row;
        if (row < args.t) {
          store_wide_tile<kFeatures>(acc[half], args, row, order.feature(work) * kFeatures,
                                     pieces + threadIdx.x / 32 * kPieceBytes);
        }
      }
    }
  }
  cluster_sync();  // the other one may still copy to this one and count on it
}

template <int kGroups, int kFeatures, int kBlocks>
__global__ __launch_bounds__(128 * kGroups + 32,
                             1) void linear_kernel(const __grid_constant__ CUtensorMap x_map,
                                                   const __grid_constant__ CUtensorMap w_map,
                                                   const __grid_constant__ LinearArgs args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto* full = reinterpret_cast<uint64_t*>(shared);
  uint64_t* empty = full + kMaxStages;
  const int x_block = args.x_rows * 128, x_bytes = kBlocks * x_block;
  constexpr int kWeightBlock = kFeatures * 128, kWeightBytes = kBlocks * kWeightBlock;
  uint8_t* x_stages = shared + kBarrierBytes;
  uint8_t* w_stages = x_stages + args.stages * x_bytes;
  const int first_row = static_cast<int>(blockIdx.x) * 64 * kGroups;
  const int first_feature = static_cast<int>(blockIdx.y) * kFeatures;
  const int steps = (args.k + kBlocks * kDepth - 1) / (kBlocks * kDepth);

  if (threadIdx.x == 0) {
    prefetch_map(&w_map);
    prefetch_map(&x_map);
    for (int i = 0; i < args.stages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, 4 * kGroups);
    }
    fence_barrier_init();
  }
  __syncthreads();
  start_dependents();

  if (threadIdx.x >= 128 * kGroups) {
    if (threadIdx.x != 128 * kGroups) return;
    const uint64_t policy = args.weights_once ? kEvictFirst : kEvictNormal;
    const int ahead = steps < args.stages ? steps : args.stages;
    // Columns past the end come as zeros.
    const auto copy = [&](uint8_t* to, int block_bytes, const CUtensorMap* map, uint64_t* arrived,
                          int k, int row, uint64_t hint) {
      if (args.planes) {
        copy_box_3d(to, map, arrived, 0, row, k * kBlocks, hint);
      } else {
        for (int block = 0; block < kBlocks; ++block) {
          copy_box(to + block * block_bytes, map, arrived, (k * kBlocks + block) * kDepth, row,
                   hint);
        }
      }
    };
    for (int k = 0; k < ahead; ++k) {
      barrier_expect_bytes(full + k, static_cast<uint32_t>(x_bytes + kWeightBytes));
      copy(w_stages + k * kWeightBytes, kWeightBlock, &w_map, full + k, k, first_feature, policy);
    }
    wait_for_previous();
    for (int k = 0; k < ahead; ++k) {
      copy(x_stages + k * x_bytes, x_block, &x_map, full + k, k, first_row, kEvictNormal);
    }
    int stage = 0;
    uint32_t phase = 0;
    for (int k = ahead; k < steps; ++k) {
      barrier_wait(empty + stage, phase);
      barrier_expect_bytes(full + stage, static_cast<uint32_t>(x_bytes + kWeightBytes));
      copy(w_stages + stage * kWeightBytes, kWeightBlock, &w_map, full + stage, k, first_feature,
           policy);
      copy(x_stages + stage * x_bytes, x_block, &x_map, full + stage, k, first_row, kEvictNormal);
      if (++stage == args.stages) {
        stage = 0;
        phase ^= 1;
      }
    }
    return;
  }

  const int group = static_cast<int>(threadIdx.x) / 128;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  float acc[kFeatures / 2];
  int stage = 0, previous = -1;
  uint32_t phase = 0;
  const auto release = [&](int s) {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + s);
  };
  for (int k = 0; k < steps; ++k) {
    barrier_wait(full + stage, phase);
    const uint64_t a = descriptor_k_major(x_stages + stage * x_bytes + group * 64 * 128);
    const uint64_t b = descriptor_k_major(w_stages + stage * kWeightBytes);
    pin_registers(acc);
    wgmma_fence();
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      // A descriptor counts in 16 bytes.
      const uint64_t a_block = a + static_cast<uint64_t>(block * x_block / 16);
      const uint64_t b_block = b + static_cast<uint64_t>(block * kWeightBlock / 16);
#pragma unroll
      for (int step = 0; step < kDepth / 16; ++step) {
        Wgmma<kFeatures, 0, 0>::run(acc, a_block + 2 * step, b_block + 2 * step,
                                    k + block + step > 0);
      }
    }
    wgmma_commit();
    if (previous >= 0) {
      wgmma_wait<1>();
      release(previous);
    }
    previous = stage;
    if (++stage == args.stages) {
      stage = 0;
      phase ^= 1;
    }
  }
  wgmma_wait<0>();
  pin_registers(acc);
  wait_for_previous();  // y of a sum was written by a kernel before
  store_tile<kFeatures>(acc, args, first_row + warp_row, first_feature);
}

LinearArgs arguments_of(const LinearParams& p) {
  LinearArgs args = {};
  args.bias = p.bias_N;
  args.y = p.y;
  args.addend = p.addend_TN == nullptr ? static_cast<const float*>(p.y) : p.addend_TN;
  args.kept = static_cast<__nv_bfloat16*>(p.kept_TN);
  args.y_stride = p.y_stride;
  args.t = static_cast<int>(p.t);
  args.n = static_cast<int>(p.n);
  args.k = static_cast<int>(p.k);
  // What is read again and again should be what is smaller.
  args.features_first = p.n <= p.t;
  args.output = p.output;
  return args;
}

CudaCode launch_wide(const LinearParams& p, CudaErrorText* error) {
  LinearArgs args = arguments_of(p);
  constexpr int kFeatures = kWideFeatures, kStageBytes = (128 + kFeatures) * 128, kStages = 6;
  constexpr int kBytes = kBarrierBytes + kStages * kStageBytes + 8 * kPieceBytes;
  static_assert(kBytes <= 227 * 1024);
  args.stages = kStages;
  CUtensorMap x_map, w_map;
  GRADUS_CUDA_RETURN(encode_rows(&x_map, p.x_TK, p.t, p.k, 128, kDepth, error));
  GRADUS_CUDA_RETURN(encode_rows(&w_map, p.w_NK, p.n, p.k, kFeatures / kCluster, kDepth, error));
  const int64_t rows = kCluster * 128;
  const int64_t work = (p.t + rows - 1) / rows * ((p.n + kFeatures - 1) / kFeatures);
  const int64_t clusters = num_processors() / kCluster;
  GRADUS_CUDA_CALL(
      cudaFuncSetAttribute(wide_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  return launch_clusters(
      wide_kernel, dim3(static_cast<unsigned>((work < clusters ? work : clusters) * kCluster)),
      dim3(kCluster), 384, kBytes, p.stream, error, x_map, w_map, args);
}

template <int kGroups, int kFeatures, int kBlocks>
CudaCode launch_stages(const LinearParams& p, CudaErrorText* error) {
  LinearArgs args = arguments_of(p);
  const int tile_rows = 64 * kGroups;
  const int padded_rows = static_cast<int>((p.t + 7) / 8 * 8);
  args.x_rows = kGroups == 1 && padded_rows < 64 ? padded_rows : tile_rows;
  const int row_tiles = static_cast<int>((p.t + tile_rows - 1) / tile_rows);
  const int feature_tiles = static_cast<int>((p.n + kFeatures - 1) / kFeatures);
  args.weights_once = row_tiles == 1;
  args.planes = args.k % kDepth == 0;
  const int stage_bytes = kBlocks * (args.x_rows + kFeatures) * 128;
  // Two blocks of threads with small tiles fit one processor: this kernel's and the next one's. If
  // half of the processors have none, each of the others asks for more at once.
  const bool few = 2 * row_tiles * feature_tiles <= num_processors() + 1;
  const int budget = (kGroups * kFeatures >= 128 || few ? 208 : 100) * 1024;
  const int steps = (args.k + kBlocks * kDepth - 1) / (kBlocks * kDepth);
  args.stages = budget / stage_bytes;
  if (args.stages > kMaxStages) args.stages = kMaxStages;
  if (args.stages > steps) args.stages = steps;
  CUtensorMap x_map, w_map;
  if (args.planes) {
    GRADUS_CUDA_RETURN(encode_blocks(&x_map, p.x_TK, p.t, p.k, args.x_rows, kBlocks, error));
    GRADUS_CUDA_RETURN(encode_blocks(&w_map, p.w_NK, p.n, p.k, kFeatures, kBlocks, error));
  } else {
    GRADUS_CUDA_RETURN(encode_rows(&x_map, p.x_TK, p.t, p.k, args.x_rows, kDepth, error));
    GRADUS_CUDA_RETURN(encode_rows(&w_map, p.w_NK, p.n, p.k, kFeatures, kDepth, error));
  }
  auto kernel = linear_kernel<kGroups, kFeatures, kBlocks>;
  const int bytes = kBarrierBytes + args.stages * stage_bytes + kReadPastEnd;
  static_assert(kBarrierBytes + 208 * 1024 + kReadPastEnd <= 227 * 1024);
  GRADUS_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        kBarrierBytes + 208 * 1024 + kReadPastEnd));
  return launch_dependent(
      kernel, dim3(static_cast<unsigned>(row_tiles), static_cast<unsigned>(feature_tiles)),
      128 * kGroups + 32, bytes, p.stream, error, x_map, w_map, args);
}

// Blocks of 64 columns that come in a stage: small tiles by several, since one thread asks for all.
template <int kGroups, int kFeatures>
CudaCode launch(const LinearParams& p, CudaErrorText* error) {
  if constexpr (kGroups == 1 && kFeatures <= 32) {
    return p.t <= 16 ? launch_stages<1, kFeatures, 4>(p, error)
                     : launch_stages<1, kFeatures, 2>(p, error);
  } else {
    constexpr int kBlocks = kGroups == 1 && kFeatures == 64 ? 2 : 1;
    return launch_stages<kGroups, kFeatures, kBlocks>(p, error);
  }
}

struct Tile {
  int groups, features;
};
constexpr Tile kTiles[] = {{1, 8},   {1, 16}, {1, 32},  {1, 64},
                           {1, 128}, {2, 64}, {2, 128}, {2, 256}};

// Rows from which on the kernel for many is taken.
constexpr int64_t kWideRows = 1024;

// The tile of the least time by what 64 columns take: a processor's reading of its operands at 64
// bytes a clock, everybody's reading of them from L2, multiplying, or the latency of the chain.
Tile choose_tile(const LinearParams& p) {
  constexpr int64_t kL2BytesPerClock = 6500;  // as it fits what was measured
  Tile best = kTiles[0];
  int64_t least = INT64_MAX;
  const int64_t processors = num_processors();
  for (const Tile& tile : kTiles) {
    if (p.output == LinearOutput::kSwiglu && tile.features < 16) continue;
    const int64_t rows = 64 * tile.groups, padded = (p.t + 7) / 8 * 8;
    const int64_t tiles = (p.t + rows - 1) / rows * ((p.n + tile.features - 1) / tile.features);
    const int64_t waves = (tiles + processors - 1) / processors;
    const int64_t bytes = ((padded < rows ? padded : rows) + tile.features) * kDepth * 2;
    const int64_t multiplied = waves * (2 * tile.groups * tile.features);
    int64_t clocks = 100 * waves;
    for (const int64_t other : {waves * bytes / 64, tiles * bytes / kL2BytesPerClock, multiplied}) {
      if (clocks < other) clocks = other;
    }
    // On a draw small tiles for few rows (more memory is asked for at once), large ones for many.
    if (clocks < least || (clocks == least && p.t > 64)) {
      least = clocks;
      best = tile;
    }
  }
  return best;
}

CudaCode linear(const LinearParams& p, CudaErrorText* error) {
  const bool has_whole_pieces = p.y_stride % 8 == 0;
  Tile tile = p.t >= kWideRows && has_whole_pieces ? Tile{4, kWideFeatures} : choose_tile(p);
  if (p.force_groups > 0) tile = {p.force_groups, p.force_features};
  switch (tile.groups * 1000 + tile.features) {
    case 1008:
      return launch<1, 8>(p, error);
    case 1016:
      return launch<1, 16>(p, error);
    case 1032:
      return launch<1, 32>(p, error);
    case 1064:
      return launch<1, 64>(p, error);
    case 1128:
      return launch<1, 128>(p, error);
    case 2064:
      return launch<2, 64>(p, error);
    case 2128:
      return launch<2, 128>(p, error);
    case 2256:
      return launch<2, 256>(p, error);
    case 4000 + kWideFeatures:
      return launch_wide(p, error);
    default:
      break;
  }
  std::snprintf(error->text, sizeof(error->text), "there is no tile of %d x %d", 64 * tile.groups,
                tile.features);
  return CudaCode::kInvalidArgument;
}

}  // namespace

CudaCode linear_forward(const LinearParams& p, CudaErrorText* error) { return linear(p, error); }

}  // namespace gradus::kernels::cuda
