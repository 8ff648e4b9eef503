// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/device_backward_params.h"
#include "kernels/internal/attention_block.cuh"
#include "kernels/internal/cuda_host.cuh"

// Attention's backward in two kernels without atomics, so that it repeats bit for bit
// (FlashAttention-2, Dao 2023, arXiv:2307.08691, Algorithm 2, with dQ apart): one block of threads
// makes dQ of 64 rows and a head, going over their keys; a cluster of blocks dK and dV of 64 keys
// and a key-value head, each going over the rows of its share of the heads that see them, before
// their sums meet in order. Each warp has 16 of the 64 rows. Scores are made again from q and k, in
// units of log 2 as in the forward.
namespace gradus::kernels::cuda {
namespace {

constexpr int kThreads = 128, kTile = 64;

struct Args {
  const __nv_bfloat16* qkv;
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
// dQ: q and dout, two stages of keys and values. dK and dV: keys and values, two stages of q, dout,
// and of their sums.
template <int kWidth>
constexpr int kSharedBytes = 6 * kTileBytes<kWidth> + 4 * kTile * 4;

__device__ inline void copy_async(uint32_t to, const void* from, bool is_there) {
  const int bytes = is_there ? 16 : 0;  // the rest comes as zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Rows [0, count) of a matrix whose rows are `stride` elements apart; further rows are zeros.
template <int kWidth>
__device__ inline void load_tile(uint32_t to, const __nv_bfloat16* from, int64_t stride,
                                 int count) {
  constexpr int kParts = kWidth / 8;
  for (int i = threadIdx.x; i < kTile * kParts; i += kThreads) {
    const int row = i / kParts, part = i % kParts;
    const bool is_there = row < count;
    copy_async(part_address<kWidth>(to, row, part), from + (is_there ? row : 0) * stride + part * 8,
               is_there);
  }
}

// A fragments of rows [first, first + 16), columns [16 k, 16 k + 16).
template <int kWidth>
__device__ inline void load_rows(uint32_t (&a)[4], uint32_t tile, int first, int k) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, r = lane % 8;
  load_matrices(a, part_address<kWidth>(tile, first + r + (matrix & 1) * 8, 2 * k + matrix / 2));
}

// s = rows [first, first + 16) of `a` times the 64 rows of `b`, over their columns.
template <int kWidth>
__device__ inline void product_of_rows(float (&s)[8][4], uint32_t a_tile, int first,
                                       uint32_t b_tile) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, r = lane % 8;
#pragma unroll
  for (int j = 0; j < 8; ++j) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
  for (int p = 0; p < kWidth / 32; ++p) {
    uint32_t a[2][4];
    load_rows<kWidth>(a[0], a_tile, first, 2 * p);
    load_rows<kWidth>(a[1], a_tile, first, 2 * p + 1);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      uint32_t b[4];
      load_matrices(b, part_address<kWidth>(b_tile, 8 * j + r, 4 * p + matrix));
      mma_16x8(s[j], a[0], b[0], b[1]);
      mma_16x8(s[j], a[1], b[2], b[3]);
    }
  }
}

// sum += a (16 x 64) times the 64 rows of `b`.
template <int kWidth>
__device__ inline void add_product(float (&sum)[kWidth / 8][4], const uint32_t (&a)[4][4],
                                   uint32_t b_tile) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, r = lane % 8;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int d = 0; d < kWidth / 16; ++d) {
      uint32_t b[4];
      load_matrices_transposed(
          b, part_address<kWidth>(b_tile, 16 * k + (matrix & 1) * 8 + r, 2 * d + matrix / 2));
      mma_16x8(sum[2 * d], a[k], b[0], b[1]);
      mma_16x8(sum[2 * d + 1], a[k], b[2], b[3]);
    }
  }
}

template <int kWidth>
__device__ inline void clear(float (&sum)[kWidth / 8][4]) {
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j) sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
}

// Rows g, g + 8 of a warp's 16, times `factor`.
template <int kWidth>
__device__ inline void store_rows(__nv_bfloat16* to, int64_t stride, int first, int num_rows,
                                  const float (&sum)[kWidth / 8][4], float factor) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first + g + 8 * h;
    if (row >= num_rows) continue;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      *reinterpret_cast<__nv_bfloat162*>(to + row * stride + 8 * j + 2 * c) =
          __floats2bfloat162_rn(sum[j][2 * h] * factor, sum[j][2 * h + 1] * factor);
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

// delta = sum over columns of dout * out; one warp for a row and a head.
template <int kWidth>
__global__ __launch_bounds__(kThreads) void delta_kernel(const __grid_constant__ Args args) {
  start_dependents();
  wait_for_previous();
  const int64_t work = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (work >= args.num_rows * args.num_heads) return;
  float sum = 0;
  for (int i = threadIdx.x % 32 * 2; i < kWidth; i += 64) {
    const float2 a =
        __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(args.out + work * kWidth + i));
    const float2 b =
        __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(args.dout + work * kWidth + i));
    sum = __fmaf_rn(a.x, b.x, sum);
    sum = __fmaf_rn(a.y, b.y, sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) args.delta[work] = sum;
}

template <int kWidth>
__global__ __launch_bounds__(kThreads, kWidth == 64 ? 3 : 2) void query_kernel(
    const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  start_dependents();
  wait_for_previous();
  const AttentionBackwardTile tile = args.tiles[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y), kv_head = head / args.heads_per_group;
  const int64_t stride = static_cast<int64_t>(args.num_heads + 2 * args.num_kv_heads) * kWidth;
  const int64_t out_stride = static_cast<int64_t>(args.num_heads) * kWidth;
  const uint32_t queries = shared_address(shared), douts = queries + kTileBytes<kWidth>;
  const auto keys_of = [&](int i) { return queries + (2 + 2 * (i % 2)) * kTileBytes<kWidth>; };
  const __nv_bfloat16* keys = args.qkv + (args.num_heads + kv_head) * kWidth;
  const __nv_bfloat16* values = keys + args.num_kv_heads * kWidth;
  const Blocks blocks(tile.other_begin, tile.other_end, tile.own_begin,
                      tile.row_begin + tile.num_rows);
  const auto load = [&](int i) {
    const int64_t from = blocks.begin(i) * stride;
    load_tile<kWidth>(keys_of(i), keys + from, stride, blocks.size(i));
    load_tile<kWidth>(keys_of(i) + kTileBytes<kWidth>, values + from, stride, blocks.size(i));
    copy_commit();
  };
  load_tile<kWidth>(queries, args.qkv + tile.row_begin * stride + head * kWidth, stride,
                    tile.num_rows);
  load_tile<kWidth>(douts, args.dout + tile.row_begin * out_stride + head * kWidth, out_stride,
                    tile.num_rows);
  load(0);
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
  float dq[kWidth / 8][4];
  clear<kWidth>(dq);
  for (int i = 0; i < blocks.count; ++i) {
    if (i + 1 < blocks.count) {
      load(i + 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const uint32_t key_tile = keys_of(i), value_tile = key_tile + kTileBytes<kWidth>;
    const int begin = blocks.begin(i), size = blocks.size(i);
    float s[8][4], dp[8][4];
    product_of_rows<kWidth>(s, queries, first, key_tile);
    product_of_rows<kWidth>(dp, douts, first, value_tile);
    uint32_t ds[4][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = tile.row_begin + first + g + 8 * h;
      // Keys of the block that the row sees.
      const int last = blocks.is_own(i) && row - begin + 1 < size ? row - begin + 1 : size;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          float& score = s[j][2 * h + x];
          const float p =
              8 * j + 2 * c + x < last ? exp2_fast(score * args.scale_log2 - lse[h]) : 0.0f;
          score = p * (dp[j][2 * h + x] - delta[h]);
        }
        ds[j / 2][(j % 2) * 2 + h] = pack_bf16(s[j][2 * h], s[j][2 * h + 1]);
      }
    }
    add_product<kWidth>(dq, ds, key_tile);
    __syncthreads();  // the block may be overwritten
  }
  store_rows<kWidth>(args.dqkv + tile.row_begin * stride + head * kWidth, stride, first,
                     tile.num_rows, dq, args.scale);
}

template <int kWidth>
__global__ __launch_bounds__(kThreads) void key_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  start_dependents();
  wait_for_previous();
  const AttentionBackwardTile tile = args.tiles[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y) / args.cluster;
  const int rank = static_cast<int>(blockIdx.y) % args.cluster;
  const int first_head = args.heads_per_group * rank / args.cluster;
  const int num_own_heads = args.heads_per_group * (rank + 1) / args.cluster - first_head;
  const int64_t stride = static_cast<int64_t>(args.num_heads + 2 * args.num_kv_heads) * kWidth;
  const int64_t out_stride = static_cast<int64_t>(args.num_heads) * kWidth;
  const uint32_t keys = shared_address(shared), values = keys + kTileBytes<kWidth>;
  const auto queries_of = [&](int i) { return keys + (2 + 2 * (i % 2)) * kTileBytes<kWidth>; };
  auto* sums = reinterpret_cast<float*>(shared + 6 * kTileBytes<kWidth>);
  const int64_t key_column = static_cast<int64_t>(args.num_heads + kv_head) * kWidth;
  const int64_t value_column = key_column + static_cast<int64_t>(args.num_kv_heads) * kWidth;
  const Blocks blocks(tile.other_begin, tile.other_end, tile.row_begin, tile.own_end);
  const int count = blocks.count * num_own_heads;
  const auto load = [&](int step) {
    const int head = kv_head * args.heads_per_group + first_head + step / blocks.count;
    const int i = step % blocks.count, begin = blocks.begin(i), size = blocks.size(i);
    load_tile<kWidth>(queries_of(step), args.qkv + begin * stride + head * kWidth, stride, size);
    load_tile<kWidth>(queries_of(step) + kTileBytes<kWidth>,
                      args.dout + begin * out_stride + head * kWidth, out_stride, size);
    copy_commit();
    float* to = sums + step % 2 * 2 * kTile;
    if (threadIdx.x < kTile) {
      const int row = static_cast<int>(threadIdx.x);
      const int64_t at = static_cast<int64_t>(begin + row) * args.num_heads + head;
      to[row] = row < size ? args.lse[at] : 0.0f;
      to[kTile + row] = row < size ? args.delta[at] : 0.0f;
    }
  };
  load_tile<kWidth>(keys, args.qkv + tile.row_begin * stride + key_column, stride, tile.num_rows);
  load_tile<kWidth>(values, args.qkv + tile.row_begin * stride + value_column, stride,
                    tile.num_rows);
  load(0);
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int first = static_cast<int>(threadIdx.x) / 32 * 16;
  float dk[kWidth / 8][4], dv[kWidth / 8][4];
  clear<kWidth>(dk);
  clear<kWidth>(dv);
  for (int step = 0; step < count; ++step) {
    if (step + 1 < count) {
      load(step + 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const int i = step % blocks.count, begin = blocks.begin(i), size = blocks.size(i);
    const uint32_t query_tile = queries_of(step), dout_tile = query_tile + kTileBytes<kWidth>;
    const float* lse = sums + step % 2 * 2 * kTile;
    const float* delta = lse + kTile;
    float s[8][4], dp[8][4];
    product_of_rows<kWidth>(s, keys, first, query_tile);
    product_of_rows<kWidth>(dp, values, first, dout_tile);
    uint32_t p[4][4], ds[4][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = tile.row_begin + first + g + 8 * h;
      // The first query of the block that sees the key.
      const int from = blocks.is_own(i) ? row - begin : 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          const int column = 8 * j + 2 * c + x;
          float& score = s[j][2 * h + x];
          float& slope = dp[j][2 * h + x];
          score = column >= from && column < size ? exp2_fast(score * args.scale_log2 - lse[column])
                                                  : 0.0f;
          slope = score * (slope - delta[column]);
        }
        p[j / 2][(j % 2) * 2 + h] = pack_bf16(s[j][2 * h], s[j][2 * h + 1]);
        ds[j / 2][(j % 2) * 2 + h] = pack_bf16(dp[j][2 * h], dp[j][2 * h + 1]);
      }
    }
    add_product<kWidth>(dv, p, dout_tile);
    add_product<kWidth>(dk, ds, query_tile);
    __syncthreads();  // the block may be overwritten
  }
  __nv_bfloat16* to = args.dqkv + tile.row_begin * stride;
  if (args.cluster == 1) {
    store_rows<kWidth>(to + key_column, stride, first, tile.num_rows, dk, args.scale);
    store_rows<kWidth>(to + value_column, stride, first, tile.num_rows, dv, 1);
    return;
  }
  // The shares of a cluster: each block leaves its sums in the memory that its tiles were in, then
  // adds up a part of the rows over all blocks.
  auto* mine = reinterpret_cast<float2*>(shared);  // [dk, dv][64][kWidth / 2]
  constexpr int kPairs = kWidth / 2;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first + g + 8 * h;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      mine[row * kPairs + 4 * j + c] = {dk[j][2 * h], dk[j][2 * h + 1]};
      mine[(kTile + row) * kPairs + 4 * j + c] = {dv[j][2 * h], dv[j][2 * h + 1]};
    }
  }
  cluster_sync();
  for (int i = threadIdx.x; i < 2 * kTile * kPairs; i += kThreads) {
    const int row = i / kPairs % kTile, pair = i % kPairs;
    if (row % args.cluster != rank || row >= tile.num_rows) continue;
    float2 sum = {0, 0};
    for (int block = 0; block < args.cluster; ++block) {
      const float2 other = read_at(mine + i, static_cast<uint32_t>(block));
      sum = {sum.x + other.x, sum.y + other.y};
    }
    const bool is_key = i < kTile * kPairs;
    const float factor = is_key ? args.scale : 1.0f;
    *reinterpret_cast<__nv_bfloat162*>(to + row * stride + (is_key ? key_column : value_column) +
                                       2 * pair) =
        __floats2bfloat162_rn(sum.x * factor, sum.y * factor);
  }
  cluster_sync();  // what others read must stay
}

template <int kWidth>
CudaCode launch(const DeviceAttentionBackwardParams& p, CudaErrorText* error) {
  Args args = {static_cast<const __nv_bfloat16*>(p.qkv_T),
               static_cast<const __nv_bfloat16*>(p.out_T),
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
  for (const auto kernel : {query_kernel<kWidth>, key_kernel<kWidth>}) {
    GRADUS_CUDA_CALL(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  }
  constexpr int64_t kWarps = kThreads / 32;
  GRADUS_CUDA_RETURN(launch_dependent(
      delta_kernel<kWidth>, dim3(static_cast<unsigned>((p.t * p.num_heads + kWarps - 1) / kWarps)),
      kThreads, 0, p.stream, error, args));
  GRADUS_CUDA_RETURN(launch_dependent(
      query_kernel<kWidth>,
      dim3(static_cast<unsigned>(p.num_query_tiles), static_cast<unsigned>(p.num_heads)), kThreads,
      kBytes, p.stream, error, args));
  args.tiles = p.key_tiles;
  constexpr int kMaxCluster = 8;
  args.cluster = args.heads_per_group < kMaxCluster ? args.heads_per_group : kMaxCluster;
  return launch_clusters(key_kernel<kWidth>,
                         dim3(static_cast<unsigned>(p.num_key_tiles),
                              static_cast<unsigned>(p.num_kv_heads * args.cluster)),
                         dim3(1, static_cast<unsigned>(args.cluster), 1), kThreads, kBytes,
                         p.stream, error, args);
}

}  // namespace

CudaCode attention_backward(const DeviceAttentionBackwardParams& p, CudaErrorText* error) {
  return p.head_width == 64 ? launch<64>(p, error) : launch<128>(p, error);
}

}  // namespace gradus::kernels::cuda
