// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/device_forward_params.h"
#include "kernels/internal/cuda_host.cuh"
#include "kernels/internal/device_math.cuh"
#include "kernels/internal/rotate_head.cuh"

// What the forward does row by row between its products, and the state of the batch's places.
namespace gradus::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__global__ __launch_bounds__(kThreads) void embed_kernel(const __nv_bfloat16* embedding,
                                                         const int32_t* tokens, float* x, int d) {
  start_dependents();
  wait_for_previous();
  const int32_t token = tokens[blockIdx.x] < 0 ? 0 : tokens[blockIdx.x];
  const __nv_bfloat16* from = embedding + static_cast<int64_t>(token) * d;
  float* to = x + static_cast<int64_t>(blockIdx.x) * d;
  for (int i = threadIdx.x * 2; i < d; i += kThreads * 2) {
    *reinterpret_cast<float2*>(to + i) =
        __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(from + i));
  }
}

// One block of threads a row; thread t adds the squares of elements 4 t .. 4 t + 3, 4 t + 512 ..,
// then a tree.
__global__ __launch_bounds__(kThreads) void rms_norm_kernel(const float* x, const float* weight,
                                                            const int32_t* rows, int d, float eps,
                                                            __nv_bfloat16* y) {
  __shared__ float warp_sums[kThreads / 32];
  start_dependents();
  wait_for_previous();
  const int64_t row = rows == nullptr ? static_cast<int64_t>(blockIdx.x) : rows[blockIdx.x];
  const float* from = x + row * d;
  float squares = 0;
  for (int i = threadIdx.x * 4; i < d; i += kThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(from + i);
    squares = __fmaf_rn(v.x, v.x, squares);
    squares = __fmaf_rn(v.y, v.y, squares);
    squares = __fmaf_rn(v.z, v.z, squares);
    squares = __fmaf_rn(v.w, v.w, squares);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float sum = warp_sums[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) sum = __fadd_rn(sum, warp_sums[i]);
  const float rstd = __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum, static_cast<float>(d)), eps)));
  __nv_bfloat16* to = y + static_cast<int64_t>(blockIdx.x) * d;
  for (int i = threadIdx.x * 4; i < d; i += kThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(from + i);
    const float4 w = *reinterpret_cast<const float4*>(weight + i);
    __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(__fmul_rn(__fmul_rn(v.x, rstd), w.x),
                                                    __fmul_rn(__fmul_rn(v.y, rstd), w.y)),
                              __floats2bfloat162_rn(__fmul_rn(__fmul_rn(v.z, rstd), w.z),
                                                    __fmul_rn(__fmul_rn(v.w, rstd), w.w))};
    *reinterpret_cast<uint2*>(to + i) = *reinterpret_cast<uint2*>(pair);
  }
}

struct RotateArgs {
  __nv_bfloat16* qkv;
  HeadRotation rotation;
  const int32_t *positions, *table_rows, *tables;
  __nv_bfloat16* pages;
  int64_t table_stride, page_size, num_work;  // T (H + 2 G)
  int num_heads, num_kv_heads;
};

constexpr int kRotateWarps = 4;

// One warp for each head of q, k and v of a row.
template <int kWidth>
__global__ __launch_bounds__(32 * kRotateWarps) void rotate_kernel(
    const __grid_constant__ RotateArgs args) {
  start_dependents();
  wait_for_previous();
  const int64_t work = static_cast<int64_t>(blockIdx.x) * kRotateWarps + threadIdx.x / 32;
  if (work >= args.num_work) return;
  const int heads = args.num_heads + 2 * args.num_kv_heads;
  const int64_t row = work / heads;
  const int head = static_cast<int>(work % heads);
  const int position = args.positions[row];
  __nv_bfloat16* x = args.qkv + work * kWidth;
  HeadColumns<kWidth> columns;
  columns.load(x);
  const HeadRotation& rotation = args.rotation;
  if (head < args.num_heads + args.num_kv_heads) {
    columns.rotate(head < args.num_heads ? rotation.q_norm_K : rotation.k_norm_K, rotation.eps,
                   rotation.cosines, rotation.sines, position);
  }
  if (head < args.num_heads) {
    columns.store(x);
    return;
  }
  const int in_page = position % static_cast<int>(kDevicePageTokens);
  const int64_t page = args.tables[args.table_rows[row] * args.table_stride +
                                   position / static_cast<int>(kDevicePageTokens)];
  // Keys of all heads come first in a page, then values.
  columns.store_in_page(args.pages + page * args.page_size +
                            ((head - args.num_heads) * kDevicePageTokens + in_page) * kWidth,
                        in_page);
}

// The same without norms of heads: one thread for eight columns of a head and their partners, which
// are the page's parts.
template <int kWidth>
__global__ __launch_bounds__(kThreads) void turn_kernel(const __grid_constant__ RotateArgs args) {
  constexpr int kParts = kWidth / 16;  // threads a head
  start_dependents();
  wait_for_previous();
  const int64_t work = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (work >= args.num_work * kParts) return;
  const int heads = args.num_heads + 2 * args.num_kv_heads;
  const int part = static_cast<int>(work % kParts), head = static_cast<int>(work / kParts % heads);
  const int64_t row = work / kParts / heads;
  const int position = args.positions[row];
  uint4* x = reinterpret_cast<uint4*>(args.qkv + (row * heads + head) * kWidth);
  Eight low, high;
  low.bits = x[part];
  high.bits = x[part + kParts];
  if (head < args.num_heads + args.num_kv_heads) {
    const int64_t angle = static_cast<int64_t>(position) * (kWidth / 2) + part * 8;
    turn<false>(low, high, args.rotation.cosines + angle, args.rotation.sines + angle);
  }
  if (head < args.num_heads) {
    x[part] = low.bits;
    x[part + kParts] = high.bits;
    return;
  }
  const int in_page = position % static_cast<int>(kDevicePageTokens);
  const int64_t page = args.tables[args.table_rows[row] * args.table_stride +
                                   position / static_cast<int>(kDevicePageTokens)];
  uint4* to =
      reinterpret_cast<uint4*>(args.pages + page * args.page_size +
                               ((head - args.num_heads) * kDevicePageTokens + in_page) * kWidth);
  to[part ^ (in_page & 7)] = low.bits;
  to[(part + kParts) ^ (in_page & 7)] = high.bits;
}

__global__ void copy_pages_kernel(uint4* pages, const PageCopy* copies, int64_t page_parts,
                                  int64_t layer_parts) {
  start_dependents();
  wait_for_previous();
  uint4* layer = pages + blockIdx.y * layer_parts;
  const PageCopy copy = copies[blockIdx.x];
  for (int64_t i = threadIdx.x; i < page_parts; i += blockDim.x) {
    layer[copy.to * page_parts + i] = layer[copy.from * page_parts + i];
  }
}

__global__ void copy_rows_kernel(const uint4* from, const int32_t* rows, uint4* to,
                                 int64_t row_parts) {
  start_dependents();
  wait_for_previous();
  for (int64_t i = threadIdx.x; i < row_parts; i += blockDim.x) {
    to[blockIdx.x * row_parts + i] = from[rows[blockIdx.x] * row_parts + i];
  }
}

// Moves come after starts, in order, so one thread does them all; there are few.
__global__ void start_slots_kernel(SlotState state, const SlotStart* starts, int count,
                                   const int32_t* tokens_from, int32_t* tables,
                                   const int32_t* new_tables, int64_t table_stride) {
  start_dependents();
  wait_for_previous();
  for (int i = 0; i < count; ++i) {
    const SlotStart start = starts[i];
    if (threadIdx.x == 0) {
      if (start.token < 0 && start.position >= 0) {
        state.tokens[start.slot] = state.tokens[start.from];
        state.positions[start.slot] = state.positions[start.from];
        state.rows[start.slot] = state.rows[start.from];
        state.positions[start.from] = -1;
      } else {
        state.tokens[start.slot] = start.position < 0 ? 0 : tokens_from[start.token];
        state.positions[start.slot] = start.position;
        state.rows[start.slot] = start.row;
      }
    }
    if (start.position < 0) continue;
    const int32_t* from =
        start.token < 0 ? tables + start.from * table_stride : new_tables + i * table_stride;
    for (int64_t j = threadIdx.x; j < table_stride; j += blockDim.x) {
      tables[start.slot * table_stride + j] = from[j];
    }
    __syncthreads();
  }
}

__global__ void advance_slots_kernel(SlotState state, const int32_t* sampled, int count) {
  start_dependents();
  wait_for_previous();
  const int slot = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (slot >= count) return;
  state.tokens[slot] = sampled[slot];
  if (state.positions[slot] >= 0) {
    ++state.positions[slot];
    ++state.rows[slot].position;
  }
}

}  // namespace

CudaCode embed_forward(const DeviceEmbedParams& p, CudaErrorText* error) {
  return launch_dependent(embed_kernel, dim3(static_cast<unsigned>(p.t)), kThreads, 0, p.stream,
                          error, static_cast<const __nv_bfloat16*>(p.embedding_VD), p.tokens_T,
                          p.x_TD, static_cast<int>(p.d));
}

CudaCode rms_norm_forward(const DeviceRmsNormParams& p, CudaErrorText* error) {
  return launch_dependent(rms_norm_kernel, dim3(static_cast<unsigned>(p.r)), kThreads, 0, p.stream,
                          error, p.x_TD, p.weight_D, p.rows_R, static_cast<int>(p.d), p.eps,
                          static_cast<__nv_bfloat16*>(p.y_RD));
}

CudaCode rotate_forward(const DeviceRotateParams& p, CudaErrorText* error) {
  RotateArgs args = {};
  args.qkv = static_cast<__nv_bfloat16*>(p.qkv_T);
  args.rotation = p.rotation;
  args.positions = p.positions_T;
  args.table_rows = p.table_rows_T;
  args.tables = p.kv.tables;
  args.pages = static_cast<__nv_bfloat16*>(p.kv.pages);
  args.table_stride = p.kv.table_stride;
  args.page_size = p.kv.page_size();
  args.num_work = p.t * (p.num_heads + 2 * p.kv.num_kv_heads);
  args.num_heads = static_cast<int>(p.num_heads);
  args.num_kv_heads = static_cast<int>(p.kv.num_kv_heads);
  if (p.rotation.q_norm_K == nullptr && p.rotation.k_norm_K == nullptr) {
    const int64_t threads = args.num_work * p.kv.head_width / 16;
    const dim3 blocks(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
    auto kernel = p.kv.head_width == 64 ? turn_kernel<64> : turn_kernel<128>;
    return launch_dependent(kernel, blocks, kThreads, 0, p.stream, error, args);
  }
  const dim3 grid(static_cast<unsigned>((args.num_work + kRotateWarps - 1) / kRotateWarps));
  return p.kv.head_width == 64 ? launch_dependent(rotate_kernel<64>, grid, 32 * kRotateWarps, 0,
                                                  p.stream, error, args)
                               : launch_dependent(rotate_kernel<128>, grid, 32 * kRotateWarps, 0,
                                                  p.stream, error, args);
}

CudaCode copy_pages(void* pages, const PageCopy* copies, int64_t count, int64_t page_bytes,
                    int64_t num_layers, int64_t layer_bytes, Stream stream, CudaErrorText* error) {
  return launch_dependent(
      copy_pages_kernel, dim3(static_cast<unsigned>(count), static_cast<unsigned>(num_layers)), 256,
      0, stream, error, static_cast<uint4*>(pages), copies, page_bytes / 16, layer_bytes / 16);
}

CudaCode copy_rows(const void* from, const int32_t* rows, void* to, int64_t count,
                   int64_t row_bytes, Stream stream, CudaErrorText* error) {
  return launch_dependent(copy_rows_kernel, dim3(static_cast<unsigned>(count)), 128, 0, stream,
                          error, static_cast<const uint4*>(from), rows, static_cast<uint4*>(to),
                          row_bytes / 16);
}

CudaCode start_slots(const SlotState& state, const SlotStart* starts, int64_t count,
                     const int32_t* tokens_from, int32_t* tables, const int32_t* new_tables,
                     int64_t table_stride, Stream stream, CudaErrorText* error) {
  return launch_dependent(start_slots_kernel, dim3(1), 256, 0, stream, error, state, starts,
                          static_cast<int>(count), tokens_from, tables, new_tables, table_stride);
}

CudaCode advance_slots(const SlotState& state, const int32_t* sampled, int64_t count, Stream stream,
                       CudaErrorText* error) {
  return launch_dependent(advance_slots_kernel, dim3(static_cast<unsigned>((count + 127) / 128)),
                          128, 0, stream, error, state, sampled, static_cast<int>(count));
}

}  // namespace gradus::kernels::cuda
