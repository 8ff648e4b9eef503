// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/device_backward_params.h"
#include "kernels/internal/attention_block.cuh"
#include "kernels/internal/cuda_host.cuh"
#include "kernels/internal/hopper.cuh"
#include "kernels/internal/wgmma.cuh"

// Attention's backward in two kernels without atomics, so that it repeats bit for bit
// (FlashAttention-2, Dao 2023, arXiv:2307.08691, Algorithm 2, with dQ apart): one warpgroup makes
// dQ of 64 rows and a head, going over their keys; a cluster of warpgroups dK and dV of 64 keys and
// a key-value head, each going over the rows of its share of the heads that see them, before their
// sums meet in order. Scores are made again from q and k, in units of log 2 as in the forward.
// Products are wgmma's: tiles of 64 rows in shared memory, read by rows or by columns; what becomes
// of the scores goes on in registers. A tile comes as one box of the tensor copy engine: rows past
// the end of its sequence are those of the next one, and their scores are left out.
namespace gradus::kernels::cuda {
namespace {

constexpr int kThreads = 128, kTile = 64;
constexpr int kMaxCluster = 8;
// Columns of a tile lie in planes of 64: rows of 128 bytes, in the order of the 128-byte swizzle.
constexpr uint32_t kPlaneBytes = kTile * 128;

struct Args {
  const __nv_bfloat16* out;
  const __nv_bfloat16* dout;
  const float* lse;
  float* delta;
  __nv_bfloat16* dqkv;
  const AttentionBackwardTile* tiles;
  int64_t num_rows;
  int num_heads, num_kv_heads, heads_per_group;
  int cluster;  // blocks of threads that share a key-value head
  float scale, scale_log2;
};

template <int kWidth>
constexpr int kTileBytes = kTile* kWidth * 2;
// Barriers; then for dQ: q and dout, two stages of keys and values; for dK and dV: keys and values,
// two stages of q, dout, and of their sums.
constexpr int kBarrierBytes = 1024;
template <int kWidth>
constexpr int kSharedBytes = kBarrierBytes + 6 * kTileBytes<kWidth> + 4 * kTile * 4;
// Blocks of threads on a processor, by their registers.
template <int kWidth>
constexpr int kQueryBlocks = kWidth == 64 ? 4 : 2;
template <int kWidth>
constexpr int kKeyBlocks = kWidth == 64 ? 3 : 2;

// Four bytes, or zero.
__device__ inline void copy_number(void* to, const float* from, bool is_there) {
  const int bytes = is_there ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes)
               : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// 64 rows of a head, whose first column is a multiple of 64.
__device__ inline void copy_tile(uint8_t* to, const CUtensorMap* map, uint64_t* arrived, int column,
                                 int row) {
  copy_box_3d(to, map, arrived, 0, row, column / 64, kEvictNormal);
}

// Asks for s = the 64 rows of tile a times those of tile b, over their columns.
template <int kWidth>
__device__ inline void ask_product_of_rows(float (&s)[32], const uint8_t* a_tile,
                                           const uint8_t* b_tile) {
  const uint64_t a = descriptor_k_major(a_tile), b = descriptor_k_major(b_tile);
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    const uint64_t further = static_cast<uint64_t>(k / 4) * (kPlaneBytes / 16) + 2 * (k % 4);
    Wgmma<kTile, 0, 0>::run(s, a + further, b + further, k > 0);
  }
  wgmma_commit();
}

// Asks for sum += a (64 x 64, in registers) times the 64 rows of tile b.
template <int kWidth>
__device__ inline void ask_product_of_columns(float (&sum)[kWidth / 2], const uint32_t (&a)[16],
                                              const uint8_t* b_tile) {
  const uint64_t b = descriptor_of_rows(b_tile, kPlaneBytes);
#pragma unroll
  for (int k = 0; k < 4; ++k) WgmmaOfRegisters<kWidth, 1>::run(sum, a + 4 * k, b + 128 * k);
  wgmma_commit();
}

// Scores to what products of registers read: a[4 k + h + 2 i] are columns 16 k + 8 i + 2 c and the
// next of row g + 8 h.
__device__ inline void pack_scores(uint32_t (&a)[16], const float (&s)[32]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      a[4 * (j / 2) + 2 * (j % 2) + h] = pack_bf16(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]);
    }
  }
}

template <int kCount>
__device__ inline void clear(float (&sum)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] = 0;
}

// Rows g, g + 8 of a warp's 16, times `factor`.
template <int kWidth>
__device__ inline void store_rows(__nv_bfloat16* to, int64_t stride, int first, int num_rows,
                                  const float (&sum)[kWidth / 2], float factor) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first + g + 8 * h;
    if (row >= num_rows) continue;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      const float* from = sum + 4 * j + 2 * h;
      *reinterpret_cast<__nv_bfloat162*>(to + row * stride + 8 * j + 2 * c) =
          __floats2bfloat162_rn(from[0] * factor, from[1] * factor);
    }
  }
}

// Blocks of 64 rows that a tile meets: the other rows first, then its own from `own_first` on.
struct Blocks {
  int other_begin, other_end, num_other, own_first, own_end, count;
  __device__ Blocks(int other_first, int other_last, int own_from, int own_to)
      : other_begin(other_first),
        other_end(other_last),
        num_other((other_last - other_first + kTile - 1) / kTile),
        own_first(own_from),
        own_end(own_to),
        count(num_other + (own_to - own_from + kTile - 1) / kTile) {}
  __device__ bool is_own(int i) const { return i >= num_other; }
  __device__ int begin(int i) const {
    return is_own(i) ? own_first + (i - num_other) * kTile : other_begin + i * kTile;
  }
  __device__ int size(int i) const {
    const int left = (is_own(i) ? own_end : other_end) - begin(i);
    return left < kTile ? left : kTile;
  }
};

// delta = sum over columns of dout * out; kWidth / 8 lanes for a row and a head.
template <int kWidth>
__global__ __launch_bounds__(kThreads) void delta_kernel(const __grid_constant__ Args args) {
  constexpr int kLanes = kWidth / 8;
  start_dependents();
  wait_for_previous();
  const int64_t lane = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t work = lane / kLanes;
  float sum = 0;
  if (work < args.num_rows * args.num_heads) {
    Eight out, dout;
    out.bits = reinterpret_cast<const uint4*>(args.out)[lane];
    dout.bits = reinterpret_cast<const uint4*>(args.dout)[lane];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 a = __bfloat1622float2(out.pairs[i]), b = __bfloat1622float2(dout.pairs[i]);
      sum = __fmaf_rn(a.x, b.x, sum);
      sum = __fmaf_rn(a.y, b.y, sum);
    }
  }
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, mask));
  }
  if (lane % kLanes == 0 && work < args.num_rows * args.num_heads) args.delta[work] = sum;
}

template <int kWidth>
__global__ __launch_bounds__(kThreads, kQueryBlocks<kWidth>) void query_kernel(
    const __grid_constant__ CUtensorMap qkv_map, const __grid_constant__ CUtensorMap dout_map,
    const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto* const arrived = reinterpret_cast<uint64_t*>(shared);  // of each stage
  uint8_t* const queries = shared + kBarrierBytes;
  uint8_t* const douts = queries + kTileBytes<kWidth>;
  const auto keys_of = [&](int i) { return queries + (2 + 2 * (i % 2)) * kTileBytes<kWidth>; };
  if (threadIdx.x == 0) {
    barrier_init(arrived, 1);
    barrier_init(arrived + 1, 1);
    fence_barrier_init();
  }
  __syncthreads();
  start_dependents();
  wait_for_previous();
  const AttentionBackwardTile tile = args.tiles[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y), kv_head = head / args.heads_per_group;
  const int key_column = (args.num_heads + kv_head) * kWidth;
  const int value_column = key_column + args.num_kv_heads * kWidth;
  const Blocks blocks(tile.other_begin, tile.other_end, tile.own_begin,
                      tile.row_begin + tile.num_rows);
  const auto load = [&](int i) {  // by one thread
    uint64_t* barrier = arrived + i % 2;
    barrier_expect_bytes(barrier, (i == 0 ? 4 : 2) * kTileBytes<kWidth>);
    copy_tile(keys_of(i), &qkv_map, barrier, key_column, blocks.begin(i));
    copy_tile(keys_of(i) + kTileBytes<kWidth>, &qkv_map, barrier, value_column, blocks.begin(i));
  };
  if (threadIdx.x == 0) {
    load(0);
    copy_tile(queries, &qkv_map, arrived, head * kWidth, tile.row_begin);
    copy_tile(douts, &dout_map, arrived, head * kWidth, tile.row_begin);
  }
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int first = static_cast<int>(threadIdx.x) / 32 * 16;
  float lse[2], delta[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first + g + 8 * h;
    const bool is_there = row < tile.num_rows;
    const int64_t at = static_cast<int64_t>(tile.row_begin + row) * args.num_heads + head;
    lse[h] = is_there ? args.lse[at] : 0.0f;
    delta[h] = is_there ? args.delta[at] : 0.0f;
  }
  float dq[kWidth / 2];
  clear(dq);
  for (int i = 0; i < blocks.count; ++i) {
    if (threadIdx.x == 0 && i + 1 < blocks.count) load(i + 1);
    barrier_wait(arrived + i % 2, static_cast<uint32_t>(i / 2 % 2));
    const uint8_t* key_tile = keys_of(i);
    const int begin = blocks.begin(i), size = blocks.size(i);
    float s[32], dp[32];
    wgmma_fence();
    ask_product_of_rows<kWidth>(s, queries, key_tile);
    ask_product_of_rows<kWidth>(dp, douts, key_tile + kTileBytes<kWidth>);
    wgmma_wait<1>();
    pin_registers(s);
#pragma unroll
    for (int n = 0; n < 32; ++n) {
      s[n] = exp2_fast(s[n] * args.scale_log2 - lse[n / 2 % 2]);
    }
    // A row sees all keys of the block, save where it is cut or the row's own.
    if (size < kTile || (blocks.is_own(i) && begin + kTile > tile.row_begin + 1)) {
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        const int row = tile.row_begin + first + g + 8 * (n / 2 % 2);
        const int last = blocks.is_own(i) && row - begin + 1 < size ? row - begin + 1 : size;
        if (8 * (n / 4) + 2 * c + n % 2 >= last) s[n] = 0;
      }
    }
    wgmma_wait<0>();
    pin_registers(dp);
#pragma unroll
    for (int n = 0; n < 32; ++n) s[n] *= dp[n] - delta[n / 2 % 2];
    uint32_t ds[16];
    pack_scores(ds, s);
    wgmma_fence();
    ask_product_of_columns<kWidth>(dq, ds, key_tile);
    wgmma_wait<0>();
    pin_registers(dq);
    __syncthreads();  // the block may be overwritten
  }
  const int64_t stride = static_cast<int64_t>(args.num_heads + 2 * args.num_kv_heads) * kWidth;
  store_rows<kWidth>(args.dqkv + tile.row_begin * stride + head * kWidth, stride, first,
                     tile.num_rows, dq, args.scale);
}

template <int kWidth>
__global__ __launch_bounds__(kThreads, kKeyBlocks<kWidth>) void key_kernel(
    const __grid_constant__ CUtensorMap qkv_map, const __grid_constant__ CUtensorMap dout_map,
    const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto* const arrived = reinterpret_cast<uint64_t*>(shared);  // of each stage
  uint8_t* const keys = shared + kBarrierBytes;
  uint8_t* const values = keys + kTileBytes<kWidth>;
  const auto queries_of = [&](int i) { return keys + (2 + 2 * (i % 2)) * kTileBytes<kWidth>; };
  auto* const sums = reinterpret_cast<float*>(keys + 6 * kTileBytes<kWidth>);
  if (threadIdx.x == 0) {
    barrier_init(arrived, 1);
    barrier_init(arrived + 1, 1);
    fence_barrier_init();
  }
  __syncthreads();
  start_dependents();
  wait_for_previous();
  const AttentionBackwardTile tile = args.tiles[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y) / args.cluster;
  const int rank = static_cast<int>(blockIdx.y) % args.cluster;
  const int first_head = args.heads_per_group * rank / args.cluster;
  const int num_own_heads = args.heads_per_group * (rank + 1) / args.cluster - first_head;
  const int key_column = (args.num_heads + kv_head) * kWidth;
  const int value_column = key_column + args.num_kv_heads * kWidth;
  const Blocks blocks(tile.other_begin, tile.other_end, tile.row_begin, tile.own_end);
  const int count = blocks.count * num_own_heads;
  const auto load = [&](int step) {
    const int head = kv_head * args.heads_per_group + first_head + step / blocks.count;
    const int i = step % blocks.count, begin = blocks.begin(i), size = blocks.size(i);
    if (threadIdx.x == 0) {
      uint64_t* barrier = arrived + step % 2;
      barrier_expect_bytes(barrier, (step == 0 ? 4 : 2) * kTileBytes<kWidth>);
      copy_tile(queries_of(step), &qkv_map, barrier, head * kWidth, begin);
      copy_tile(queries_of(step) + kTileBytes<kWidth>, &dout_map, barrier, head * kWidth, begin);
    }
    const int row = static_cast<int>(threadIdx.x) % kTile;
    const bool is_there = row < size, is_delta = threadIdx.x >= kTile;
    const int64_t at = static_cast<int64_t>(begin + (is_there ? row : 0)) * args.num_heads + head;
    copy_number(sums + step % 2 * 2 * kTile + threadIdx.x, (is_delta ? args.delta : args.lse) + at,
                is_there);
    copy_commit();
  };
  load(0);
  if (threadIdx.x == 0) {
    copy_tile(keys, &qkv_map, arrived, key_column, tile.row_begin);
    copy_tile(values, &qkv_map, arrived, value_column, tile.row_begin);
  }
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int first = static_cast<int>(threadIdx.x) / 32 * 16;
  float dk[kWidth / 2], dv[kWidth / 2];
  clear(dk);
  clear(dv);
  for (int step = 0; step < count; ++step) {
    if (step + 1 < count) {
      load(step + 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    barrier_wait(arrived + step % 2, static_cast<uint32_t>(step / 2 % 2));
    __syncthreads();  // sums were copied by all
    const int i = step % blocks.count, begin = blocks.begin(i), size = blocks.size(i);
    const uint8_t* query_tile = queries_of(step);
    const uint8_t* dout_tile = query_tile + kTileBytes<kWidth>;
    const float* lse = sums + step % 2 * 2 * kTile + 2 * c;
    const float* delta = lse + kTile;
    float s[32], dp[32];
    wgmma_fence();
    ask_product_of_rows<kWidth>(s, keys, query_tile);
    ask_product_of_rows<kWidth>(dp, values, dout_tile);
    wgmma_wait<1>();
    pin_registers(s);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 of_columns = *reinterpret_cast<const float2*>(lse + 8 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* score = s + 4 * j + 2 * h;
        score[0] = exp2_fast(score[0] * args.scale_log2 - of_columns.x);
        score[1] = exp2_fast(score[1] * args.scale_log2 - of_columns.y);
      }
    }
    // All queries of the block see all keys, save where it is cut or the keys' own.
    if (size < kTile || (blocks.is_own(i) && begin < tile.row_begin + kTile)) {
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        const int row = tile.row_begin + first + g + 8 * (n / 2 % 2);
        const int column = 8 * (n / 4) + 2 * c + n % 2;
        if (column >= size || (blocks.is_own(i) && column < row - begin)) s[n] = 0;
      }
    }
    uint32_t p[16], ds[16];
    pack_scores(p, s);
    wgmma_fence();
    ask_product_of_columns<kWidth>(dv, p, dout_tile);
    wgmma_wait<1>();
    pin_registers(dp);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 of_columns = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        s[4 * j + 2 * h] *= dp[4 * j + 2 * h] - of_columns.x;
        s[4 * j + 2 * h + 1] *= dp[4 * j + 2 * h + 1] - of_columns.y;
      }
    }
    pack_scores(ds, s);
    wgmma_fence();
    ask_product_of_columns<kWidth>(dk, ds, query_tile);
    wgmma_wait<0>();
    pin_registers(dk);
    pin_registers(dv);
    __syncthreads();  // the block may be overwritten
  }
  const int64_t stride = static_cast<int64_t>(args.num_heads + 2 * args.num_kv_heads) * kWidth;
  __nv_bfloat16* to = args.dqkv + tile.row_begin * stride;
  if (args.cluster == 1) {
    store_rows<kWidth>(to + key_column, stride, first, tile.num_rows, dk, args.scale);
    store_rows<kWidth>(to + value_column, stride, first, tile.num_rows, dv, 1);
    return;
  }
  // The shares of a cluster: each block leaves its sums in the memory that its tiles were in, then
  // adds up a part of the rows over all blocks.
  auto* mine = reinterpret_cast<float2*>(keys);  // [dk, dv][64][kWidth / 2]
  constexpr int kPairs = kWidth / 2;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first + g + 8 * h;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      const int n = 4 * j + 2 * h;
      mine[row * kPairs + 4 * j + c] = {dk[n], dk[n + 1]};
      mine[(kTile + row) * kPairs + 4 * j + c] = {dv[n], dv[n + 1]};
    }
  }
  cluster_sync();
  const int num_rows = (tile.num_rows - rank + args.cluster - 1) / args.cluster;
  for (int i = threadIdx.x; i < 2 * num_rows * kPairs; i += kThreads) {
    const bool is_key = i < num_rows * kPairs;
    const int pair = i % kPairs, row = rank + i / kPairs % num_rows * args.cluster;
    const float2* place = mine + (is_key ? row : kTile + row) * kPairs + pair;
    float2 shares[kMaxCluster];
#pragma unroll
    for (int block = 0; block < kMaxCluster; ++block) {
      shares[block] = {0, 0};
      if (block < args.cluster) shares[block] = read_at(place, static_cast<uint32_t>(block));
    }
    float2 sum = shares[0];
#pragma unroll
    for (int block = 1; block < kMaxCluster; ++block) {
      sum = {sum.x + shares[block].x, sum.y + shares[block].y};
    }
    const float factor = is_key ? args.scale : 1.0f;
    *reinterpret_cast<__nv_bfloat162*>(to + row * stride + (is_key ? key_column : value_column) +
                                       2 * pair) =
        __floats2bfloat162_rn(sum.x * factor, sum.y * factor);
  }
  cluster_sync();  // what others read must stay
}

template <int kWidth>
CudaCode launch(const DeviceAttentionBackwardParams& p, CudaErrorText* error) {
  Args args = {static_cast<const __nv_bfloat16*>(p.out_T),
               static_cast<const __nv_bfloat16*>(p.dout_T),
               p.lse_TH,
               p.delta_TH,
               static_cast<__nv_bfloat16*>(p.dqkv_T),
               p.query_tiles,
               p.t,
               static_cast<int>(p.num_heads),
               static_cast<int>(p.num_kv_heads),
               static_cast<int>(p.num_heads / p.num_kv_heads),
               1,
               p.scale,
               p.scale * kLog2OfE};
  constexpr int kBytes = kSharedBytes<kWidth>;
  CUtensorMap qkv_map, dout_map;
  GRADUS_CUDA_RETURN(encode_blocks(&qkv_map, p.qkv_T, p.t,
                                   (p.num_heads + 2 * p.num_kv_heads) * kWidth, kTile, kWidth / 64,
                                   error));
  GRADUS_CUDA_RETURN(
      encode_blocks(&dout_map, p.dout_T, p.t, p.num_heads * kWidth, kTile, kWidth / 64, error));
  for (const auto kernel : {query_kernel<kWidth>, key_kernel<kWidth>}) {
    GRADUS_CUDA_CALL(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  }
  constexpr int64_t kRows = kThreads / (kWidth / 8);
  GRADUS_CUDA_RETURN(launch_dependent(
      delta_kernel<kWidth>, dim3(static_cast<unsigned>((p.t * p.num_heads + kRows - 1) / kRows)),
      kThreads, 0, p.stream, error, args));
  GRADUS_CUDA_RETURN(launch_dependent(
      query_kernel<kWidth>,
      dim3(static_cast<unsigned>(p.num_query_tiles), static_cast<unsigned>(p.num_heads)), kThreads,
      kBytes, p.stream, error, qkv_map, dout_map, args));
  args.tiles = p.key_tiles;
  args.cluster = args.heads_per_group < kMaxCluster ? args.heads_per_group : kMaxCluster;
  return launch_clusters(key_kernel<kWidth>,
                         dim3(static_cast<unsigned>(p.num_key_tiles),
                              static_cast<unsigned>(p.num_kv_heads * args.cluster)),
                         dim3(1, static_cast<unsigned>(args.cluster), 1), kThreads, kBytes,
                         p.stream, error, qkv_map, dout_map, args);
}

}  // namespace

CudaCode attention_backward(const DeviceAttentionBackwardParams& p, CudaErrorText* error) {
  return p.head_width == 64 ? launch<64>(p, error) : launch<128>(p, error);
}

}  // namespace gradus::kernels::cuda
