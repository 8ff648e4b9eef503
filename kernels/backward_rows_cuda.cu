// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/device_backward_params.h"
#include "kernels/internal/cuda_host.cuh"
#include "kernels/internal/device_math.cuh"
#include "kernels/internal/rotate_head.cuh"

// What the backward does row by row between its products. Sums over rows go in fixed parts that
// meet in order, so everything repeats bit for bit.
namespace gradus::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// Rows of dy: bf16, or sums of fp32 rows.
struct Dy {
  const __nv_bfloat16* bf16;
  const float* f32;
  const int32_t* begin;
  int64_t stride;
  explicit Dy(const GradientRows& rows, int64_t row_stride)
      : bf16(static_cast<const __nv_bfloat16*>(rows.bf16_RD)),
        f32(rows.f32_ND),
        begin(rows.begin_R),
        stride(row_stride) {}
  __device__ float operator()(int64_t row, int column) const {
    if (bf16 != nullptr) return __bfloat162float(bf16[row * stride + column]);
    float sum = 0;
    for (int64_t i = begin[row]; i < begin[row + 1]; ++i) sum += f32[i * stride + column];
    return sum;
  }
};

// The sum of each thread's number over the block, in all threads.
__device__ inline float block_sum(float x, float* warp_sums) {
  x = warp_sum(x);
  __syncthreads();  // sums of a call before may still be read
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = warp_sums[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) sum = __fadd_rn(sum, warp_sums[i]);
  return sum;
}

__global__ __launch_bounds__(kThreads) void rms_norm_backward_kernel(const float* x,
                                                                     const float* weight,
                                                                     const int32_t* rows, Dy dy,
                                                                     int d, float eps, float* dx,
                                                                     float* rstds) {
  __shared__ float warp_sums[kThreads / 32];
  start_dependents();
  wait_for_previous();
  const int64_t row = rows == nullptr ? static_cast<int64_t>(blockIdx.x) : rows[blockIdx.x];
  const float* from = x + row * d;
  float* to = dx + row * d;
  float squares = 0, dot = 0;
  for (int i = threadIdx.x; i < d; i += kThreads) {
    squares = fmaf(from[i], from[i], squares);
    dot = fmaf(weight[i] * dy(blockIdx.x, i), from[i], dot);
  }
  squares = block_sum(squares, warp_sums);
  dot = block_sum(dot, warp_sums);
  const float rstd = __frcp_rn(sqrtf(squares / static_cast<float>(d) + eps));
  const float along = dot * rstd * rstd * rstd / static_cast<float>(d);
  for (int i = threadIdx.x; i < d; i += kThreads) {
    to[i] += rstd * weight[i] * dy(blockIdx.x, i) - along * from[i];
  }
  if (threadIdx.x == 0) rstds[blockIdx.x] = rstd;
}

// One thread a column, blockIdx.y a part of the rows; eight rows are on the way at once.
__global__ __launch_bounds__(kThreads) void column_sums_kernel(Dy dy, const float* x,
                                                               const int32_t* rows,
                                                               const float* rstds, int64_t num_rows,
                                                               int d, float* partial) {
  start_dependents();
  wait_for_previous();
  const int column = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (column >= d) return;
  const int64_t begin = num_rows * blockIdx.y / kColumnSplits;
  const int64_t end = num_rows * (blockIdx.y + 1) / kColumnSplits;
  const auto term = [&](int64_t r) {
    if (x == nullptr) return dy(r, column);
    const int64_t row = rows == nullptr ? r : rows[r];
    return dy(r, column) * rstds[r] * x[row * d + column];
  };
  float sum = 0;
  int64_t r = begin;
  for (; r + 8 <= end; r += 8) {
    float terms[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) terms[i] = term(r + i);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += terms[i];
  }
  for (; r < end; ++r) sum += term(r);
  partial[blockIdx.y * static_cast<int64_t>(d) + column] = sum;
}

// sum[column] += the parts' sums, `stride` floats apart: a block has 32 columns, each of its 8
// warps every eighth part, and the warps' sums meet in order.
__global__ __launch_bounds__(256) void add_parts_kernel(const float* partial, int num_parts,
                                                        int64_t stride, int d, float* sum) {
  __shared__ float sums[8][32];
  start_dependents();
  wait_for_previous();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column = static_cast<int>(blockIdx.x) * 32 + lane;
  float total = 0;
  if (column < d) {
#pragma unroll 8
    for (int i = warp; i < num_parts; i += 8) total += partial[i * stride + column];
  }
  sums[warp][lane] = total;
  __syncthreads();
  if (warp > 0 || column >= d) return;
  for (int i = 1; i < 8; ++i) total += sums[i][lane];
  sum[column] += total;
}

__global__ __launch_bounds__(kThreads) void swiglu_backward_kernel(uint4* gate_up, uint4* inner,
                                                                   int64_t count) {
  start_dependents();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  Eight gate, up, d;
  gate.bits = gate_up[2 * i];
  up.bits = gate_up[2 * i + 1];
  d.bits = inner[i];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 g = __bfloat1622float2(gate.pairs[j]), u = __bfloat1622float2(up.pairs[j]);
    const float2 dy = __bfloat1622float2(d.pairs[j]);
    const auto one = [](float x, float y, float slope, float& dgate, float& dup, float& value) {
      const float sigmoid = __frcp_rn(1 + exp2_fast(-x * kLog2OfE));
      const float silu = x * sigmoid;
      value = silu * y;
      dup = slope * silu;
      dgate = slope * y * sigmoid * (1 + x * (1 - sigmoid));
    };
    float2 dgate, dup, value;
    one(g.x, u.x, dy.x, dgate.x, dup.x, value.x);
    one(g.y, u.y, dy.y, dgate.y, dup.y, value.y);
    gate.pairs[j] = __floats2bfloat162_rn(dgate.x, dgate.y);
    up.pairs[j] = __floats2bfloat162_rn(dup.x, dup.y);
    d.pairs[j] = __floats2bfloat162_rn(value.x, value.y);
  }
  gate_up[2 * i] = gate.bits;
  gate_up[2 * i + 1] = up.bits;
  inner[i] = d.bits;
}

constexpr int kWarps = kThreads / 32;

// One thread for eight columns of a head of q and k and their partners, and, where what is read is
// not what is written, sixteen of v.
template <int kWidth, bool kBackward>
__global__ __launch_bounds__(kThreads) void turn_rows_kernel(const uint4* from, uint4* to,
                                                             HeadRotation rotation,
                                                             const int32_t* positions,
                                                             int64_t num_work, int num_rotated,
                                                             int num_all) {
  constexpr int kParts = kWidth / 16;  // threads a head
  start_dependents();
  wait_for_previous();
  const int64_t work = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (work >= num_work) return;
  const int heads = kBackward ? num_rotated : num_all;
  const int part = static_cast<int>(work % kParts), head = static_cast<int>(work / kParts % heads);
  const int64_t row = work / kParts / heads;
  const int64_t at = (row * num_all + head) * (2 * kParts) + part;
  Eight low, high;
  low.bits = from[at];
  high.bits = from[at + kParts];
  if (head < num_rotated) {
    const int64_t angle = static_cast<int64_t>(positions[row]) * (kWidth / 2) + part * 8;
    turn<kBackward>(low, high, rotation.cosines + angle, rotation.sines + angle);
  }
  to[at] = low.bits;
  to[at + kParts] = high.bits;
}

// One warp for each head of q, k and v of a row.
template <int kWidth>
__global__ __launch_bounds__(kThreads) void rotate_rows_kernel(
    const __nv_bfloat16* raw, __nv_bfloat16* qkv, HeadRotation rotation, const int32_t* positions,
    int64_t num_work, int num_heads, int num_kv_heads) {
  start_dependents();
  wait_for_previous();
  const int64_t work = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (work >= num_work) return;
  const int heads = num_heads + 2 * num_kv_heads;
  const int head = static_cast<int>(work % heads);
  HeadColumns<kWidth> columns;
  columns.load(raw + work * kWidth);
  if (head < num_heads + num_kv_heads) {
    columns.rotate(head < num_heads ? rotation.q_norm_K : rotation.k_norm_K, rotation.eps,
                   rotation.cosines, rotation.sines, positions[work / heads]);
  }
  columns.store(qkv + work * kWidth);
}

// A warp takes heads of q and k, kRotateBackwardWarps apart, and keeps the sums of the norms'
// weights.
template <int kWidth>
__global__ __launch_bounds__(kThreads) void rotate_backward_kernel(
    const __nv_bfloat16* raw, __nv_bfloat16* dqkv, HeadRotation rotation, const int32_t* positions,
    int64_t num_rows, int num_heads, int num_kv_heads, float* partial) {
  constexpr int kHalf = kWidth / 2, kPairs = kHalf / 32;
  start_dependents();
  wait_for_previous();
  const int lane = threadIdx.x % 32;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int rotated = num_heads + num_kv_heads;
  const int64_t num_work = num_rows * rotated;
  HeadColumns<kWidth> sums[2];
  for (HeadColumns<kWidth>& sum : sums) {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) sum.low[j] = sum.high[j] = 0;
  }
  for (int64_t work = warp; work < num_work; work += kRotateBackwardWarps) {
    const int64_t row = work / rotated;
    const int head = static_cast<int>(work % rotated);
    const int64_t at = (row * (rotated + num_kv_heads) + head) * kWidth;
    HeadColumns<kWidth> d;
    d.load(dqkv + at);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int64_t angle = static_cast<int64_t>(positions[row]) * kHalf + lane + 32 * j;
      const float cosine = rotation.cosines[angle], sine = rotation.sines[angle];
      const float a = d.low[j], b = d.high[j];
      d.low[j] = a * cosine + b * sine;
      d.high[j] = b * cosine - a * sine;
    }
    const float* norm = head < num_heads ? rotation.q_norm_K : rotation.k_norm_K;
    HeadColumns<kWidth> x;
    x.load(raw + at);
    float squares = 0, dot = 0;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      squares += x.low[j] * x.low[j] + x.high[j] * x.high[j];
      dot += norm[lane + 32 * j] * d.low[j] * x.low[j] +
             norm[lane + 32 * j + kHalf] * d.high[j] * x.high[j];
    }
    const float rstd =
        __frcp_rn(sqrtf(warp_sum(squares) / static_cast<float>(kWidth) + rotation.eps));
    const float along = warp_sum(dot) * rstd * rstd * rstd / static_cast<float>(kWidth);
    HeadColumns<kWidth>& sum = sums[head < num_heads ? 0 : 1];
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      sum.low[j] += d.low[j] * x.low[j] * rstd;
      sum.high[j] += d.high[j] * x.high[j] * rstd;
      d.low[j] = rstd * norm[lane + 32 * j] * d.low[j] - along * x.low[j];
      d.high[j] = rstd * norm[lane + 32 * j + kHalf] * d.high[j] - along * x.high[j];
    }
    d.store(dqkv + at);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    float* to = partial + (warp * 2 + n) * kWidth;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      to[lane + 32 * j] = sums[n].low[j];
      to[lane + 32 * j + kHalf] = sums[n].high[j];
    }
  }
}

__global__ __launch_bounds__(kThreads) void embed_backward_kernel(const float* dx,
                                                                  const int32_t* tokens,
                                                                  const int32_t* begin,
                                                                  const int32_t* rows, int d,
                                                                  float* dembedding) {
  start_dependents();
  wait_for_previous();
  float* to = dembedding + static_cast<int64_t>(tokens[blockIdx.x]) * d;
  for (int i = threadIdx.x; i < d; i += kThreads) {
    float sum = to[i];
    for (int32_t n = begin[blockIdx.x]; n < begin[blockIdx.x + 1]; ++n) {
      sum += dx[static_cast<int64_t>(rows[n]) * d + i];
    }
    to[i] = sum;
  }
}

__global__ __launch_bounds__(kThreads) void round_kernel(const float4* x, uint2* y, int64_t count) {
  start_dependents();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const float4 v = x[i];
  __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)};
  y[i] = *reinterpret_cast<uint2*>(pair);
}

dim3 blocks_for(int64_t count, int64_t each) {
  return dim3(static_cast<unsigned>((count + each - 1) / each));
}

CudaCode add_parts(const float* partial, int64_t num_parts, int64_t stride, int64_t d, float* sum,
                   Stream stream, CudaErrorText* error) {
  return launch_dependent(add_parts_kernel, blocks_for(d, 32), 256, 0, stream, error, partial,
                          static_cast<int>(num_parts), stride, static_cast<int>(d), sum);
}

}  // namespace

CudaCode rms_norm_backward(const DeviceRmsNormBackwardParams& p, CudaErrorText* error) {
  return launch_dependent(rms_norm_backward_kernel, dim3(static_cast<unsigned>(p.r)), kThreads, 0,
                          p.stream, error, p.x_TD, p.weight_D, p.rows_R, Dy(p.dy, p.d),
                          static_cast<int>(p.d), p.eps, p.dx_TD, p.rstd_R);
}

CudaCode column_sums(const DeviceColumnSumsParams& p, CudaErrorText* error) {
  const dim3 grid(static_cast<unsigned>((p.d + kThreads - 1) / kThreads),
                  static_cast<unsigned>(kColumnSplits));
  GRADUS_CUDA_RETURN(launch_dependent(column_sums_kernel, grid, kThreads, 0, p.stream, error,
                                      Dy(p.dy, p.dy_stride == 0 ? p.d : p.dy_stride), p.x_TD,
                                      p.rows_R, p.rstd_R, p.r, static_cast<int>(p.d), p.partial));
  return add_parts(p.partial, kColumnSplits, p.d, p.d, p.sum_D, p.stream, error);
}

CudaCode swiglu_backward(const DeviceSwigluBackwardParams& p, CudaErrorText* error) {
  const int64_t count = p.t * p.f / 8;
  return launch_dependent(swiglu_backward_kernel, blocks_for(count, kThreads), kThreads, 0,
                          p.stream, error, static_cast<uint4*>(p.gate_up_T),
                          static_cast<uint4*>(p.inner_TF), count);
}

CudaCode rotate_rows(const DeviceRotateRowsParams& p, CudaErrorText* error) {
  const int heads = static_cast<int>(p.num_heads), kv_heads = static_cast<int>(p.num_kv_heads);
  const int64_t work = p.t * (p.num_heads + 2 * p.num_kv_heads);
  if (p.rotation.q_norm_K == nullptr) {
    const int64_t count = work * p.head_width / 16;
    auto kernel = p.head_width == 64 ? turn_rows_kernel<64, false> : turn_rows_kernel<128, false>;
    return launch_dependent(kernel, blocks_for(count, kThreads), kThreads, 0, p.stream, error,
                            static_cast<const uint4*>(p.raw_T), static_cast<uint4*>(p.qkv_T),
                            p.rotation, p.positions_T, count, heads + kv_heads,
                            heads + 2 * kv_heads);
  }
  auto kernel = p.head_width == 64 ? rotate_rows_kernel<64> : rotate_rows_kernel<128>;
  return launch_dependent(kernel, blocks_for(work, kWarps), kThreads, 0, p.stream, error,
                          static_cast<const __nv_bfloat16*>(p.raw_T),
                          static_cast<__nv_bfloat16*>(p.qkv_T), p.rotation, p.positions_T, work,
                          heads, kv_heads);
}

CudaCode rotate_backward(const DeviceRotateBackwardParams& p, CudaErrorText* error) {
  const int heads = static_cast<int>(p.num_heads), kv_heads = static_cast<int>(p.num_kv_heads);
  if (p.rotation.q_norm_K == nullptr) {
    const int64_t count = p.t * (p.num_heads + p.num_kv_heads) * p.head_width / 16;
    auto kernel = p.head_width == 64 ? turn_rows_kernel<64, true> : turn_rows_kernel<128, true>;
    return launch_dependent(kernel, blocks_for(count, kThreads), kThreads, 0, p.stream, error,
                            static_cast<const uint4*>(p.dqkv_T), static_cast<uint4*>(p.dqkv_T),
                            p.rotation, p.positions_T, count, heads + kv_heads,
                            heads + 2 * kv_heads);
  }
  auto kernel = p.head_width == 64 ? rotate_backward_kernel<64> : rotate_backward_kernel<128>;
  GRADUS_CUDA_RETURN(launch_dependent(kernel, blocks_for(kRotateBackwardWarps, kWarps), kThreads, 0,
                                      p.stream, error, static_cast<const __nv_bfloat16*>(p.raw_T),
                                      static_cast<__nv_bfloat16*>(p.dqkv_T), p.rotation,
                                      p.positions_T, p.t, heads, kv_heads, p.partial));
  GRADUS_CUDA_RETURN(add_parts(p.partial, kRotateBackwardWarps, 2 * p.head_width, p.head_width,
                               p.dq_norm_K, p.stream, error));
  return add_parts(p.partial + p.head_width, kRotateBackwardWarps, 2 * p.head_width, p.head_width,
                   p.dk_norm_K, p.stream, error);
}

CudaCode embed_backward(const DeviceEmbedBackwardParams& p, CudaErrorText* error) {
  return launch_dependent(embed_backward_kernel, dim3(static_cast<unsigned>(p.n)), kThreads, 0,
                          p.stream, error, p.dx_TD, p.tokens_N, p.begin_N, p.rows_M,
                          static_cast<int>(p.d), p.dembedding_VD);
}

CudaCode round_rows(const float* x, void* y, int64_t count, void* stream, CudaErrorText* error) {
  return launch_dependent(round_kernel, blocks_for(count / 4, kThreads), kThreads, 0, stream, error,
                          reinterpret_cast<const float4*>(x), static_cast<uint2*>(y), count / 4);
}

}  // namespace gradus::kernels::cuda
