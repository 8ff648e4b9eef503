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

constexpr int kNormThreads = 256;

// Four columns of a row of dy: bf16, or sums of fp32 rows.
struct Dy {
  const __nv_bfloat16* bf16;
  const float* f32;
  const int32_t* begin;
  int64_t d;
  explicit Dy(const GradientRows& rows, int64_t width)
      : bf16(static_cast<const __nv_bfloat16*>(rows.bf16_RD)),
        f32(rows.f32_ND),
        begin(rows.begin_R),
        d(width) {}
  __device__ float4 operator()(int64_t row, int column) const {
    if (bf16 != nullptr) {
      const uint2 bits = *reinterpret_cast<const uint2*>(bf16 + row * d + column);
      const float2 low = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits.x));
      const float2 high = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits.y));
      return {low.x, low.y, high.x, high.y};
    }
    float4 sum = {0, 0, 0, 0};
    for (int64_t i = begin[row]; i < begin[row + 1]; ++i) {
      const float4 more = *reinterpret_cast<const float4*>(f32 + i * d + column);
      sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
    }
    return sum;
  }
};

__device__ inline float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// A block of threads takes one row of its part after the other, a thread four columns of each
// kNormThreads of them; the next row is on the way while this one is summed. What the weight gets
// from the part stays in registers.
template <int kChunks>
__global__ __launch_bounds__(kNormThreads) void rms_norm_backward_kernel(
    const float* x, const float* weight, const int32_t* rows, Dy dy, int64_t num_rows, int d,
    float eps, float* dx, __nv_bfloat16* rounded, float* partial) {
  __shared__ float2 warp_sums[2][kNormThreads / 32];
  start_dependents();
  wait_for_previous();
  const int64_t begin = num_rows * blockIdx.x / gridDim.x;
  const int64_t end = num_rows * (blockIdx.x + 1) / gridDim.x;
  const int num_warps = static_cast<int>(blockDim.x) / 32;
  const float4 zero = {0, 0, 0, 0};
  float4 w[kChunks], sums[kChunks], next_x[kChunks], next_dy[kChunks], next_dx[kChunks];
  const auto column_of = [&](int chunk) {
    return 4 * (chunk * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x));
  };
  const auto load = [&](int64_t r) {
    const int64_t row = rows == nullptr ? r : rows[r];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int column = column_of(i);
      if (column >= d) continue;
      next_x[i] = *reinterpret_cast<const float4*>(x + row * d + column);
      next_dx[i] = *reinterpret_cast<const float4*>(dx + row * d + column);
      next_dy[i] = dy(r, column);
    }
  };
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const bool is_there = column_of(i) < d;
    w[i] = is_there ? *reinterpret_cast<const float4*>(weight + column_of(i)) : zero;
    sums[i] = next_x[i] = next_dy[i] = next_dx[i] = zero;
  }
  if (begin < end) load(begin);
  for (int64_t r = begin; r < end; ++r) {
    float4 here_x[kChunks], slope[kChunks], here_dx[kChunks];
    float squares = 0, dot = 0;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      here_x[i] = next_x[i];
      here_dx[i] = next_dx[i];
      slope[i] = next_dy[i];
    }
    if (r + 1 < end) load(r + 1);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      squares = dot4(here_x[i], here_x[i], squares);
      const float4 along_w = {w[i].x * slope[i].x, w[i].y * slope[i].y, w[i].z * slope[i].z,
                              w[i].w * slope[i].w};
      dot = dot4(along_w, here_x[i], dot);
    }
    squares = warp_sum(squares);
    dot = warp_sum(dot);
    float2* all = warp_sums[r & 1];  // those of the row before may still be read
    if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = {squares, dot};
    __syncthreads();
    squares = dot = 0;
    for (int i = 0; i < num_warps; ++i) {
      squares += all[i].x;
      dot += all[i].y;
    }
    const float rstd = __frcp_rn(sqrtf(squares / static_cast<float>(d) + eps));
    const float along = dot * rstd * rstd * rstd / static_cast<float>(d);
    const int64_t row = rows == nullptr ? r : rows[r];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int column = column_of(i);
      if (column >= d) continue;
      const auto one = [&](float to, float x_here, float weight_here, float slope_here,
                           float& sum) {
        sum += slope_here * rstd * x_here;
        return to + (rstd * weight_here * slope_here - along * x_here);
      };
      const float4 to = {one(here_dx[i].x, here_x[i].x, w[i].x, slope[i].x, sums[i].x),
                         one(here_dx[i].y, here_x[i].y, w[i].y, slope[i].y, sums[i].y),
                         one(here_dx[i].z, here_x[i].z, w[i].z, slope[i].z, sums[i].z),
                         one(here_dx[i].w, here_x[i].w, w[i].w, slope[i].w, sums[i].w)};
      *reinterpret_cast<float4*>(dx + row * d + column) = to;
      if (rounded == nullptr) continue;
      const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(to.x, to.y),
                                       __floats2bfloat162_rn(to.z, to.w)};
      *reinterpret_cast<uint2*>(rounded + row * d + column) =
          *reinterpret_cast<const uint2*>(pairs);
    }
  }
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int column = column_of(i);
    if (column < d) {
      *reinterpret_cast<float4*>(partial + static_cast<int64_t>(blockIdx.x) * d + column) = sums[i];
    }
  }
}

// One thread two columns, blockIdx.y a part of the rows; sixteen rows are on the way at once.
__global__ __launch_bounds__(kThreads) void column_sums_kernel(const __nv_bfloat162* dy,
                                                               int64_t num_rows, int num_pairs,
                                                               float2* partial) {
  start_dependents();
  wait_for_previous();
  const int pair = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (pair >= num_pairs) return;
  const int64_t begin = num_rows * blockIdx.y / kColumnSplits;
  const int64_t end = num_rows * (blockIdx.y + 1) / kColumnSplits;
  float2 sum = {0, 0};
  const auto add = [&](__nv_bfloat162 bits) {
    const float2 more = __bfloat1622float2(bits);
    sum = {sum.x + more.x, sum.y + more.y};
  };
  int64_t r = begin;
  for (; r + 16 <= end; r += 16) {
    __nv_bfloat162 terms[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) terms[i] = dy[(r + i) * num_pairs + pair];
#pragma unroll
    for (int i = 0; i < 16; ++i) add(terms[i]);
  }
  for (; r < end; ++r) add(dy[r * num_pairs + pair]);
  partial[static_cast<int64_t>(blockIdx.y) * num_pairs + pair] = sum;
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
  const int64_t parts = p.r < kNormBackwardParts ? p.r : kNormBackwardParts;
  const int64_t fours = p.d / 4;
  const int64_t threads = fours < kNormThreads ? (fours + 31) / 32 * 32 : kNormThreads;
  const auto launch = [&](auto kernel) {
    return launch_dependent(kernel, dim3(static_cast<unsigned>(parts)), static_cast<int>(threads),
                            0, p.stream, error, p.x_TD, p.weight_D, p.rows_R, Dy(p.dy, p.d), p.r,
                            static_cast<int>(p.d), p.eps, p.dx_TD,
                            static_cast<__nv_bfloat16*>(p.rounded_TD), p.partial);
  };
  const int64_t chunks = (fours + threads - 1) / threads;
  GRADUS_CUDA_RETURN(chunks == 1   ? launch(rms_norm_backward_kernel<1>)
                     : chunks == 2 ? launch(rms_norm_backward_kernel<2>)
                     : chunks <= 4 ? launch(rms_norm_backward_kernel<4>)
                     : chunks <= 8 ? launch(rms_norm_backward_kernel<8>)
                                   : launch(rms_norm_backward_kernel<16>));
  return add_parts(p.partial, parts, p.d, p.d, p.dweight_D, p.stream, error);
}

CudaCode column_sums(const DeviceColumnSumsParams& p, CudaErrorText* error) {
  const int64_t pairs = p.d / 2;
  const dim3 grid(static_cast<unsigned>((pairs + kThreads - 1) / kThreads),
                  static_cast<unsigned>(kColumnSplits));
  GRADUS_CUDA_RETURN(launch_dependent(column_sums_kernel, grid, kThreads, 0, p.stream, error,
                                      static_cast<const __nv_bfloat162*>(p.dy_RD), p.r,
                                      static_cast<int>(pairs),
                                      reinterpret_cast<float2*>(p.partial)));
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
