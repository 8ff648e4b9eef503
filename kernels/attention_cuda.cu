// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/device_forward_params.h"
#include "kernels/internal/attention_block.cuh"
#include "kernels/internal/cuda_host.cuh"
#include "kernels/internal/rotate_head.cuh"

// Decoding: one block of threads for a chunk of a sequence's keys and one key-value head; its warps
// take a block of 64 keys each, so that all of them are on the way at once, and the partial results
// are merged in order. Prefill: one block of threads for 64 rows and a query head, keys one block
// after the other. Both do what internal/attention_block.cuh says, so bits are equal.
namespace gradus::kernels::cuda {
namespace {

struct DecodeArgs {
  const __nv_bfloat16* qkv;
  __nv_bfloat16* out;
  __nv_bfloat16* pages;
  HeadRotation rotation;
  const int32_t* tables;
  const int32_t* positions;
  int64_t table_stride, page_size;
  int num_heads, num_kv_heads, heads_per_group, max_chunks;
  float scale_log2;
  uint32_t* arrivals;  // [T, G], zero between launches
  float* partial;      // [T, G, chunks, heads_per_group, K + 2]
};

template <int kWidth>
constexpr uint32_t kBlockBytes = kBlockKeys* kWidth * 2;

template <int kWidth, int kWarps>
int decode_shared_bytes(int heads_per_group) {
  return 128 + kWarps * 2 * static_cast<int>(kBlockBytes<kWidth>) +
         kChunkBlocks * heads_per_group * (kWidth + 2) * 4 + heads_per_group * kWidth * 2;
}

// Two neighbouring bf16 of a query row; 0 for a row that is none.
__device__ inline uint32_t query_pair(const __nv_bfloat16* row, bool is_there, int column) {
  return is_there ? *reinterpret_cast<const uint32_t*>(row + column) : 0u;
}

template <int kWidth, int kWarps>
__global__ __launch_bounds__(32 *
                             kWarps) void decode_kernel(const __grid_constant__ DecodeArgs args) {
  constexpr int kThreads = 32 * kWarps;
  extern __shared__ __align__(1024) uint8_t shared[];
  auto* barriers = reinterpret_cast<uint64_t*>(shared);  // keys, values of each warp
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
  const int chunk = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int row = static_cast<int>(blockIdx.z);
  const int heads = args.heads_per_group;
  uint8_t* blocks = shared + 128;
  const uint32_t keys_at = shared_address(blocks + warp * 2 * kBlockBytes<kWidth>);
  const uint32_t values_at = keys_at + kBlockBytes<kWidth>;
  // [block of the chunk][head][K values, largest, sum]
  auto* parts = reinterpret_cast<float*>(blocks + kWarps * 2 * kBlockBytes<kWidth>);
  constexpr int kPart = kWidth + 2;
  auto* queries = reinterpret_cast<__nv_bfloat16*>(parts + kChunkBlocks * heads * kPart);
  if (lane == 0) {
    barrier_init(barriers + 2 * warp, 1);
    barrier_init(barriers + 2 * warp + 1, 1);
    fence_barrier_init();
  }
  __syncwarp();
  start_dependents();

  // Positions, tables and earlier keys were there before the step began: they are read, and asked
  // for, while the kernel before this one still makes the queries.
  const int position = args.positions[row];
  const int64_t out_row = static_cast<int64_t>(row) * args.num_heads + kv_head * heads;
  __nv_bfloat16* out = args.out + out_row * kWidth;
  if (position < 0) {
    if (chunk > 0) return;
    wait_for_previous();
    for (int i = threadIdx.x; i < heads * kWidth; i += kThreads) out[i] = __float2bfloat16_rn(0);
    return;
  }
  const int num_keys = position + 1;
  const int num_chunks = (num_keys + kChunkBlocks * kBlockKeys - 1) / (kChunkBlocks * kBlockKeys);
  if (chunk >= num_chunks) return;
  const int all_blocks = (num_keys + kBlockKeys - 1) / kBlockKeys;
  const int first_block = chunk * kChunkBlocks;
  const int num_blocks =
      all_blocks - first_block < kChunkBlocks ? all_blocks - first_block : kChunkBlocks;
  const int32_t* table = args.tables + row * args.table_stride + first_block;

  const auto page_of = [&](int block) {
    return args.pages + table[block] * args.page_size +
           static_cast<int64_t>(kv_head) * kBlockKeys * kWidth;
  };
  const int64_t values_offset = static_cast<int64_t>(args.num_kv_heads) * kBlockKeys * kWidth;
  const auto copy_keys = [&](int block) {
    barrier_expect_bytes(barriers + 2 * warp, kBlockBytes<kWidth>);
    copy_bulk(keys_at, page_of(block), kBlockBytes<kWidth>, barriers + 2 * warp);
  };
  const auto copy_values = [&](int block) {
    barrier_expect_bytes(barriers + 2 * warp + 1, kBlockBytes<kWidth>);
    copy_bulk(values_at, page_of(block) + values_offset, kBlockBytes<kWidth>,
              barriers + 2 * warp + 1);
  };
  if (lane == 0 && warp < num_blocks) {
    copy_keys(warp);
    copy_values(warp);
  }
  wait_for_previous();
  // Heads of q, and the key and value of this position: the warp that attends to their block puts
  // them there, and into the page.
  const __nv_bfloat16* row_qkv =
      args.qkv + static_cast<int64_t>(row) * (args.num_heads + 2 * args.num_kv_heads) * kWidth;
  const HeadRotation& rotation = args.rotation;
  for (int head = warp; head < heads; head += kWarps) {
    HeadColumns<kWidth> columns;
    columns.load(row_qkv + (kv_head * heads + head) * kWidth);
    columns.rotate(rotation.q_norm_K, rotation.eps, rotation.cosines, rotation.sines, position);
    columns.store(queries + head * kWidth);
  }
  const int own_block = chunk == num_chunks - 1 ? num_blocks - 1 : -1;
  HeadColumns<kWidth> key, value;
  if (own_block >= 0 && own_block % kWarps == warp) {
    key.load(row_qkv + (args.num_heads + kv_head) * kWidth);
    value.load(row_qkv + (args.num_heads + args.num_kv_heads + kv_head) * kWidth);
    key.rotate(rotation.k_norm_K, rotation.eps, rotation.cosines, rotation.sines, position);
  }
  __syncthreads();
  const int g = lane / 4, c = lane % 4;
  uint32_t q[kWidth / 16][4];
  const __nv_bfloat16* q_row = queries + g * kWidth;
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    q[k][0] = query_pair(q_row, g < heads, 16 * k + 2 * c);
    q[k][1] = query_pair(q_row + 8 * kWidth, g + 8 < heads, 16 * k + 2 * c);
    q[k][2] = query_pair(q_row, g < heads, 16 * k + 2 * c + 8);
    q[k][3] = query_pair(q_row + 8 * kWidth, g + 8 < heads, 16 * k + 2 * c + 8);
  }
  const int row_position[2] = {position, position};
  uint32_t phase = 0;
  for (int block = warp; block < num_blocks; block += kWarps, phase ^= 1) {
    barrier_wait(barriers + 2 * warp, phase);
    barrier_wait(barriers + 2 * warp + 1, phase);
    if (block == own_block) {
      const int in_page = position % kBlockKeys;
      auto* keys = reinterpret_cast<__nv_bfloat16*>(blocks + warp * 2 * kBlockBytes<kWidth>);
      auto* values = keys + kBlockKeys * kWidth;
      __nv_bfloat16* page = page_of(block);
      key.store_in_page(keys + in_page * kWidth, in_page);
      value.store_in_page(values + in_page * kWidth, in_page);
      key.store_in_page(page + in_page * kWidth, in_page);
      value.store_in_page(page + values_offset + in_page * kWidth, in_page);
      __syncwarp();
    }
    Attended<kWidth> attended;
    attend_block<kWidth>(q, keys_at, values_at, (first_block + block) * kBlockKeys, row_position,
                         args.scale_log2, attended);
    __syncwarp();
    if (lane == 0 && block + kWarps < num_blocks) {
      copy_keys(block + kWarps);
      copy_values(block + kWarps);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = g + 8 * h;
      if (head >= heads) continue;
      float* part = parts + (block * heads + head) * kPart;
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
        *reinterpret_cast<float2*>(part + 8 * j + 2 * c) = {attended.o[j][2 * h],
                                                            attended.o[j][2 * h + 1]};
      }
      if (c == 0) {
        part[kWidth] = attended.max[h];
        part[kWidth + 1] = attended.sum[h];
      }
    }
  }
  __syncthreads();

  // Merges `count` parts, `stride` floats apart, for one output, in order.
  struct Total {
    float max, sum, o;
  };
  const auto merge_parts = [&](const float* part, int count, int64_t stride, int column) {
    Total total = {-INFINITY, 0, 0};
    for (int i = 0; i < count; ++i, part += stride) {
      const Merge merge(total.max, part[kWidth]);
      total = {merge.max, merge(total.sum, part[kWidth + 1]), merge(total.o, part[column])};
    }
    return total;
  };
  if (num_chunks == 1) {
    for (int i = threadIdx.x; i < heads * kWidth; i += kThreads) {
      const Total chunk_total =
          merge_parts(parts + i / kWidth * kPart, num_blocks, heads * kPart, i % kWidth);
      // Merged into nothing, as where there are several.
      const Merge merge(-INFINITY, chunk_total.max);
      out[i] =
          __float2bfloat16_rn(normalised(merge(0.0f, chunk_total.o), merge(0.0f, chunk_total.sum)));
    }
    return;
  }
  const int64_t place = static_cast<int64_t>(row) * args.num_kv_heads + kv_head;
  const int64_t stride = static_cast<int64_t>(heads) * kPart;
  float* chunks = args.partial + place * args.max_chunks * stride;
  for (int i = threadIdx.x; i < heads * kWidth; i += kThreads) {
    const int head = i / kWidth, column = i % kWidth;
    const Total total = merge_parts(parts + head * kPart, num_blocks, stride, column);
    float* to = chunks + chunk * stride + head * kPart;
    to[column] = total.o;
    if (column == 0) {
      to[kWidth] = total.max;
      to[kWidth + 1] = total.sum;
    }
  }
  __threadfence();
  __syncthreads();
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    is_last = atomicAdd(args.arrivals + place, 1u) + 1 == static_cast<uint32_t>(num_chunks);
    if (is_last) args.arrivals[place] = 0;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  for (int i = threadIdx.x; i < heads * kWidth; i += kThreads) {
    const volatile float* part = chunks + i / kWidth * kPart;
    Total total = {-INFINITY, 0, 0};
    for (int n = 0; n < num_chunks; ++n, part += stride) {
      const Merge merge(total.max, part[kWidth]);
      total = {merge.max, merge(total.sum, part[kWidth + 1]), merge(total.o, part[i % kWidth])};
    }
    out[i] = __float2bfloat16_rn(normalised(total.o, total.sum));
  }
}

struct PrefillArgs {
  const __nv_bfloat16* qkv;
  __nv_bfloat16* out;
  const __nv_bfloat16* pages;
  const int32_t* tables;
  const AttentionTile* tiles;
  float* lse;  // or null
  int64_t table_stride, page_size;
  int num_heads, num_kv_heads;
  float scale_log2;
};

constexpr int kPrefillThreads = 128;

// Barriers, two blocks of keys and values, and what chunks before this one said (o, largest, sum of
// each thread's rows).
template <int kWidth>
constexpr int kPrefillSharedBytes =
    128 + 4 * static_cast<int>(kBlockBytes<kWidth>) + kPrefillThreads*(kWidth / 2 + 4) * 4;

template <int kWidth>
__global__ __launch_bounds__(kPrefillThreads) void prefill_kernel(
    const __grid_constant__ PrefillArgs args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto* barriers = reinterpret_cast<uint64_t*>(shared);  // [2]
  const uint32_t blocks_at = shared_address(shared + 128);
  auto* before = reinterpret_cast<float*>(shared + 128 + 4 * kBlockBytes<kWidth>);
  if (threadIdx.x == 0) {
    barrier_init(barriers, 1);
    barrier_init(barriers + 1, 1);
    fence_barrier_init();
  }
  __syncthreads();
  start_dependents();
  wait_for_previous();
  const AttentionTile tile = args.tiles[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / (args.num_heads / args.num_kv_heads);
  const int num_blocks = (tile.first_position + tile.num_rows - 1) / kBlockKeys + 1;
  const int32_t* table = args.tables + tile.table_row * args.table_stride;
  const int64_t values_offset = static_cast<int64_t>(args.num_kv_heads) * kBlockKeys * kWidth;
  const auto copy_block = [&](int block) {
    uint64_t* barrier = barriers + block % 2;
    const uint32_t to = blocks_at + block % 2 * 2 * kBlockBytes<kWidth>;
    const __nv_bfloat16* page = args.pages + table[block] * args.page_size +
                                static_cast<int64_t>(kv_head) * kBlockKeys * kWidth;
    barrier_expect_bytes(barrier, 2 * kBlockBytes<kWidth>);
    copy_bulk(to, page, kBlockBytes<kWidth>, barrier);
    copy_bulk(to + kBlockBytes<kWidth>, page + values_offset, kBlockBytes<kWidth>, barrier);
  };
  if (threadIdx.x == 0) copy_block(0);

  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int first = static_cast<int>(threadIdx.x) / 32 * 16 + g;  // of this thread's rows g, g + 8
  const bool is_there[2] = {first < tile.num_rows, first + 8 < tile.num_rows};
  const int row_position[2] = {tile.first_position + first, tile.first_position + first + 8};
  const int64_t q_stride = static_cast<int64_t>(args.num_heads + 2 * args.num_kv_heads) * kWidth;
  const __nv_bfloat16* q_row = args.qkv + (tile.row_begin + first) * q_stride + head * kWidth;
  uint32_t q[kWidth / 16][4];
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    q[k][0] = query_pair(q_row, is_there[0], 16 * k + 2 * c);
    q[k][1] = query_pair(q_row + 8 * q_stride, is_there[1], 16 * k + 2 * c);
    q[k][2] = query_pair(q_row, is_there[0], 16 * k + 2 * c + 8);
    q[k][3] = query_pair(q_row + 8 * q_stride, is_there[1], 16 * k + 2 * c + 8);
  }
  Attended<kWidth> chunk;
  chunk.clear();
  // Of the chunks so far: o, largest, sum; place i of thread t at before[i * 128 + t].
  const auto merge_chunk = [&](bool is_first) {
    float* saved = before + threadIdx.x;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float old_max = is_first ? -INFINITY : saved[(kWidth / 2 + h) * kPrefillThreads];
      float old_sum = is_first ? 0.0f : saved[(kWidth / 2 + 2 + h) * kPrefillThreads];
      const bool has_keys = chunk.max[h] != -INFINITY;
      const Merge merge(old_max, has_keys ? chunk.max[h] : 0.0f);
      if (has_keys) {
        old_max = merge.max;
        old_sum = merge(old_sum, chunk.sum[h]);
      }
      saved[(kWidth / 2 + h) * kPrefillThreads] = old_max;
      saved[(kWidth / 2 + 2 + h) * kPrefillThreads] = old_sum;
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& o = saved[(4 * j + 2 * h + i) * kPrefillThreads];
          const float old_o = is_first ? 0.0f : o;
          o = has_keys ? merge(old_o, chunk.o[j][2 * h + i]) : old_o;
        }
      }
    }
    chunk.clear();
  };
  for (int block = 0; block < num_blocks; ++block) {
    if (threadIdx.x == 0 && block + 1 < num_blocks) copy_block(block + 1);
    barrier_wait(barriers + block % 2, static_cast<uint32_t>(block / 2 % 2));
    const uint32_t keys = blocks_at + block % 2 * 2 * kBlockBytes<kWidth>;
    Attended<kWidth> attended;
    attend_block<kWidth>(q, keys, keys + kBlockBytes<kWidth>, block * kBlockKeys, row_position,
                         args.scale_log2, attended);
    merge_into(chunk, attended);
    if ((block + 1) % kChunkBlocks == 0 || block + 1 == num_blocks) {
      merge_chunk(block < kChunkBlocks);
    }
    __syncthreads();  // the block may be overwritten
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!is_there[h]) continue;
    const float sum = before[(kWidth / 2 + 2 + h) * kPrefillThreads + threadIdx.x];
    if (args.lse != nullptr && c == 0) {
      args.lse[static_cast<int64_t>(tile.row_begin + first + 8 * h) * args.num_heads + head] =
          before[(kWidth / 2 + h) * kPrefillThreads + threadIdx.x] + log2f(sum);
    }
    __nv_bfloat16* out =
        args.out +
        (static_cast<int64_t>(tile.row_begin + first + 8 * h) * args.num_heads + head) * kWidth;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      const float* o = before + (4 * j + 2 * h) * kPrefillThreads + threadIdx.x;
      *reinterpret_cast<__nv_bfloat162*>(out + 8 * j + 2 * c) =
          __floats2bfloat162_rn(normalised(o[0], sum), normalised(o[kPrefillThreads], sum));
    }
  }
}

template <int kWidth, int kWarps>
CudaCode launch_decode(const DecodeArgs& args, const DeviceAttentionParams& p,
                       CudaErrorText* error) {
  auto kernel = decode_kernel<kWidth, kWarps>;
  const int bytes = decode_shared_bytes<kWidth, kWarps>(args.heads_per_group);
  GRADUS_CUDA_CALL(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return launch_dependent(
      kernel,
      dim3(static_cast<unsigned>(p.max_chunks), static_cast<unsigned>(p.kv.num_kv_heads),
           static_cast<unsigned>(p.t)),
      32 * kWarps, bytes, p.stream, error, args);
}

template <int kWidth>
CudaCode launch(const DeviceAttentionParams& p, CudaErrorText* error) {
  const int heads_per_group = static_cast<int>(p.num_heads / p.kv.num_kv_heads);
  const float scale_log2 = p.scale * kLog2OfE;
  if (p.tiles != nullptr) {
    const PrefillArgs args = {static_cast<const __nv_bfloat16*>(p.qkv_T),
                              static_cast<__nv_bfloat16*>(p.out_T),
                              static_cast<const __nv_bfloat16*>(p.kv.pages),
                              p.kv.tables,
                              p.tiles,
                              p.lse_TH,
                              p.kv.table_stride,
                              p.kv.page_size(),
                              static_cast<int>(p.num_heads),
                              static_cast<int>(p.kv.num_kv_heads),
                              scale_log2};
    auto kernel = prefill_kernel<kWidth>;
    GRADUS_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          kPrefillSharedBytes<kWidth>));
    return launch_dependent(
        kernel, dim3(static_cast<unsigned>(p.num_tiles), static_cast<unsigned>(p.num_heads)),
        kPrefillThreads, kPrefillSharedBytes<kWidth>, p.stream, error, args);
  }
  DecodeArgs args = {};
  args.qkv = static_cast<const __nv_bfloat16*>(p.qkv_T);
  args.out = static_cast<__nv_bfloat16*>(p.out_T);
  args.pages = static_cast<__nv_bfloat16*>(p.kv.pages);
  args.rotation = p.rotation;
  args.tables = p.kv.tables;
  args.positions = p.positions_T;
  args.table_stride = p.kv.table_stride;
  args.page_size = p.kv.page_size();
  args.num_heads = static_cast<int>(p.num_heads);
  args.num_kv_heads = static_cast<int>(p.kv.num_kv_heads);
  args.heads_per_group = heads_per_group;
  args.max_chunks = static_cast<int>(p.max_chunks);
  args.scale_log2 = scale_log2;
  args.arrivals = p.arrivals;
  args.partial = p.partial;
  // Few blocks of threads: as many warps as fit, so that a chunk's keys are all on the way at once.
  // Many: small ones, of which several share a processor and fill each other's waits.
  constexpr int kFew = kWidth == 128 ? 6 : 8, kMany = kWidth == 128 ? 2 : 4;
  const int64_t blocks = p.t * p.kv.num_kv_heads * p.max_chunks;
  return blocks <= num_processors() ? launch_decode<kWidth, kFew>(args, p, error)
                                    : launch_decode<kWidth, kMany>(args, p, error);
}

}  // namespace

CudaCode attention_forward(const DeviceAttentionParams& p, CudaErrorText* error) {
  return p.kv.head_width == 64 ? launch<64>(p, error) : launch<128>(p, error);
}

}  // namespace gradus::kernels::cuda
