// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "kernels/device_product_params.h"
#include "kernels/internal/cuda_host.cuh"
#include "kernels/internal/lm_head_gradient.cuh"
#include "kernels/internal/lm_head_tiles.cuh"
#include "kernels/lm_head_params.h"

// The head's backward. A kernel of the scorer's product makes dz of a chunk of the vocabulary from
// its logits in registers; two products of cuBLAS make dh and dw of it. Rows come in waves, so that
// what is stored of them, [ids, rows] in bf16, stays within kStoredBytes.
namespace gradus::kernels::cuda {
namespace {

constexpr int64_t kStoredBytes = int64_t{270} << 20;
constexpr int64_t kTileRows = 256;
// Ids of the smallest chunk: its blocks are dealt out evenly to 66 pairs of processors, 16 tiles of
// rows each in a wave of kWaveRows.
constexpr int64_t kChunkIds = 132 * kHeadBlock;
constexpr int64_t kWaveRows = 4096;
// A token's log-probability below which lm_head_train computes exponentials again.
constexpr float kLowestLogprob = -60.0f;

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
unsigned blocks_for(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

// --- the kernel that makes dz ---

struct GradientShape {
  static constexpr int kRows = 128;
  static constexpr bool kSplitRows = true;
  static constexpr int kCluster = 2;
  static constexpr int kTileRows = 2 * kRows;
  static constexpr int kWeightBytes = kHeadBlock * kDepth * 2;
  static constexpr int kHiddenBytes = kTileRows * kDepth * 2;
  static constexpr int kStageBytes = kWeightBytes + kHiddenBytes;
  // Shared memory: rows' constants, barriers, stages.
  static constexpr int kTokensAt = kTileRows * sizeof(RowGradient);
  static constexpr int kBarriersAt = kTokensAt + kTileRows * sizeof(int32_t);
  static constexpr int kStagesAt = (kBarriersAt + 256 + 1023) / 1024 * 1024;
  static constexpr int kStages = (kSharedBytes - kStagesAt) / kStageBytes;
  static_assert(kStages >= 4);
  static constexpr int kBytes = kStages * kStageBytes + kStagesAt;
};

struct GradientArgs {
  const RowGradient* rows;  // [B]
  const int32_t* tokens;    // [B], in the whole vocabulary
  const uint32_t* enabled;  // null, or 0 = there is nothing to do
  __nv_bfloat16* out;       // [ids, row_stride]
  int64_t row_stride;
  Scale scale;
  int num_rows, d;
  int num_ids, first_id;  // of this chunk; of the whole vocabulary
  int num_blocks, row_tiles;
};

__global__ __launch_bounds__(kThreads,
                             1) void gradient_kernel(const __grid_constant__ CUtensorMap w_map,
                                                     const __grid_constant__ CUtensorMap h_map,
                                                     const __grid_constant__ GradientArgs args) {
  using S = GradientShape;
  if (args.enabled != nullptr && *args.enabled == 0) return;  // the same for all blocks
  uint64_t* full = &at_shared<uint64_t>(S::kBarriersAt);
  uint64_t* empty = full + S::kStages;
  uint8_t* stages = &at_shared<uint8_t>(S::kStagesAt);
  if (threadIdx.x == 0) {
    prefetch_map(&w_map);
    prefetch_map(&h_map);
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, 8 * S::kCluster);
    }
    fence_barrier_init();
  }
  cluster_sync();

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  Ring ring;
  if (warpgroup == 0) {
    give_registers<40>();
    if (threadIdx.x == 0) copy_tiles<S>(w_map, h_map, args, stages, full, empty, ring);
    __syncwarp();
  } else {
    take_registers<232>();
    const int group = warpgroup - 1, t = static_cast<int>(threadIdx.x) % 128;
    RowGradient* rows = &at_shared<RowGradient>(0) + group * S::kRows;
    int32_t* tokens = &at_shared<int32_t>(S::kTokensAt) + group * S::kRows;
    const int lane_row = t / 32 * 16 + t % 32 / 4;
    const int rank = static_cast<int>(block_in_cluster());
    const int depth_steps = (args.d + kDepth - 1) / kDepth;
    bool first = true;
    for (Work<S> work(args); work.step < work.end; work.step += work.stride) {
      const int block = work.block(rank);
      const int first_row = work.row_tile() * S::kTileRows + group * S::kRows;
      named_barrier(1 + group, 128);  // the tile before has read its rows
      const bool there = first_row + t < args.num_rows;
      rows[t] = there ? args.rows[first_row + t] : RowGradient{0, 0, 0, 0};
      tokens[t] = there ? args.tokens[first_row + t] - args.first_id - block * kHeadBlock : -1;
      float acc[2][S::kRows / 2];
      multiply<S>(acc, depth_steps, group, stages, full, empty, ring, first);
      first = false;
      named_barrier(1 + group, 128);
      // The last pair's second block may lie past the end; its ids are not stored.
      store_gradients<S::kRows, true>(
          acc, {args.out, args.row_stride, first_row, block * kHeadBlock, args.num_ids}, args.scale,
          lane_row, [&](int n) { return rows[n]; }, [&](int n) { return tokens[n]; });
    }
  }
  cluster_sync();
}

// --- rows ---

__device__ int row_at(const int32_t* rows, int i) { return rows == nullptr ? i : rows[i]; }

// Constants of the rows of a wave, of which row i is rows[i] of all.
__global__ void prepare_backward(const LmHeadBackwardParams p, const int32_t* rows, int count,
                                 RowGradient* gradients, int32_t* tokens) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  const int row = row_at(rows, i);
  const float dlogprob = p.dlogprob_B[row] / p.temperature;
  float dentropy = 0, k0 = dlogprob;
  if (p.dentropy_B != nullptr) {
    dentropy = p.dentropy_B[row] / p.temperature;
    k0 = __fmaf_rn(dentropy, p.entropy_B[row], dlogprob);
  }
  gradients[i] = {p.lse_B[row], k0, dentropy, dlogprob};
  tokens[i] = p.token_B[row];
}

// Rows of 16-byte parts. to[i] = from[rows[i]], or to[rows[i]] = from[i].
__global__ void copy_rows_kernel(const uint4* from, uint4* to, const int32_t* rows, int64_t count,
                                 int64_t parts, bool scatter) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count * parts; i += stride) {
    const int64_t other = rows[i / parts] * parts + i % parts;
    to[scatter ? other : i] = from[scatter ? i : other];
  }
}

// A warp a row: z of its token over T, which the wave's exponentials are taken relative to. Any
// number near would do.
__global__ void reference_kernel(const __nv_bfloat16* w, const __nv_bfloat16* h,
                                 const int32_t* tokens, float temperature, int count, int d,
                                 float* references, float* temperatures) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (i >= count) return;
  const auto* a = reinterpret_cast<const __nv_bfloat162*>(w + int64_t{tokens[i]} * d);
  const auto* b = reinterpret_cast<const __nv_bfloat162*>(h + int64_t{i} * d);
  float sum = 0;
  for (int k = lane; k < d / 2; k += 32) {
    const float2 x = __bfloat1622float2(a[k]), y = __bfloat1622float2(b[k]);
    sum += x.x * y.x + x.y * y.y;
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, mask);
  if (lane == 0) {
    references[i] = sum / temperature;
    temperatures[i] = temperature;
  }
}

struct TrainedRows {
  const int32_t* tokens;
  const float* dlogprobs;
  const float* logprobs;
  const float* lses;
  const float* references;
  float temperature;
  int count;
};

// With Z = exp(lse - reference): dz = -dlogprob / (T Z) (e - Z 1{token}). Makes e that, notes the
// factor, and raises `again` if some row's Z is out of range.
__global__ void normalise_kernel(const TrainedRows p, __nv_bfloat16* e, int64_t row_stride,
                                 float* factors, RowGradient* gradients, uint32_t* again) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= p.count) return;
  const float log_z = p.lses[i] - p.references[i];
  const bool in_range = log_z <= -kLowestLogprob && log_z >= kLowestLogprob;
  if (!in_range) atomicOr(again, 1u);
  const float z = expf(log_z);
  e[p.tokens[i] * row_stride + i] = __float2bfloat16(z * expm1f(p.logprobs[i]));
  factors[i] = -p.dlogprobs[i] / (p.temperature * z);
  // Of exponentials relative to lse.
  gradients[i] = {p.lses[i], -1, 0, -1};
}

// Once gradient_kernel has made the exponentials again, relative to lse.
__global__ void renormalise_kernel(const TrainedRows p, const uint32_t* again, float* factors) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < p.count && *again != 0) factors[i] = -p.dlogprobs[i] / p.temperature;
}

__global__ void scale_hidden(const __nv_bfloat162* h, const float* factors, __nv_bfloat162* scaled,
                             int64_t count, int64_t pairs) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count * pairs; i += stride) {
    const float2 x = __bfloat1622float2(h[i]);
    const float factor = factors[i / pairs];
    scaled[i] = __floats2bfloat162_rn(x.x * factor, x.y * factor);
  }
}

__global__ void scale_gradients(float4* dh, const float* factors, int64_t count, int64_t quads) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count * quads; i += stride) {
    const float factor = factors[i / quads];
    const float4 x = dh[i];
    dh[i] = {x.x * factor, x.y * factor, x.z * factor, x.w * factor};
  }
}

// --- on the host ---

Scale host_scale(float temperature) { return {1.0f / temperature, temperature}; }

// dz, or exponentials, of ids [first_id, first_id + num_ids) and `count` rows.
struct GradientChunk {
  const void* w_VD;
  const void* h_RD;
  const RowGradient* gradients_R;
  const int32_t* tokens_R;
  const uint32_t* enabled;
  float temperature;
  int64_t count, d;
  int64_t first_id, num_ids;
  void* out;
  int64_t row_stride;
};

CudaCode make_gradients(const GradientChunk& c, cudaStream_t stream, CudaErrorText* error) {
  using S = GradientShape;
  GradientArgs args = {};
  args.rows = c.gradients_R;
  args.tokens = c.tokens_R;
  args.enabled = c.enabled;
  args.out = static_cast<__nv_bfloat16*>(c.out);
  args.row_stride = c.row_stride;
  args.scale = host_scale(c.temperature);
  args.num_rows = static_cast<int>(c.count);
  args.d = static_cast<int>(c.d);
  args.num_ids = static_cast<int>(c.num_ids);
  args.first_id = static_cast<int>(c.first_id);
  args.num_blocks = static_cast<int>((c.num_ids + kHeadBlock - 1) / kHeadBlock);
  args.row_tiles = static_cast<int>((c.count + kTileRows - 1) / kTileRows);
  CUtensorMap w_map, h_map;
  GRADUS_CUDA_RETURN(encode_rows(&w_map, static_cast<const uint16_t*>(c.w_VD) + c.first_id * c.d,
                                 c.num_ids, c.d, kHeadBlock, kDepth, error));
  GRADUS_CUDA_RETURN(
      encode_rows(&h_map, c.h_RD, c.count, c.d, S::kTileRows / S::kCluster, kDepth, error));
  GRADUS_CUDA_CALL(cudaFuncSetAttribute(gradient_kernel,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes));
  const int wanted =
      (args.num_blocks + S::kCluster - 1) / S::kCluster * args.row_tiles * S::kCluster;
  const int processors = num_processors() / S::kCluster * S::kCluster;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(wanted < processors ? wanted : processors));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = S::kBytes;
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {S::kCluster, 1, 1};
  config.attrs = &cluster;
  config.numAttrs = 1;
  GRADUS_CUDA_CALL(cudaLaunchKernelEx(&config, gradient_kernel, w_map, h_map, args));
  return CudaCode::kOk;
}

// dh (+)= dz W over these ids.
CudaCode add_to_hidden(const void* dz, int64_t row_stride, const void* w, int64_t ids, int64_t rows,
                       int64_t d, float* dh, bool accumulate, cudaStream_t stream,
                       CudaErrorText* error) {
  DeviceProductParams p;
  p.a = dz;
  p.a_transposed = true;
  p.a_stride = row_stride;
  p.b = w;
  p.c = dh;
  p.m = rows;
  p.n = d;
  p.k = ids;
  p.accumulate = accumulate;
  p.stream = stream;
  return device_product(p, error);
}

// dw += dz^T h of these ids.
CudaCode add_to_weights(const void* dz, int64_t row_stride, const void* h, int64_t ids,
                        int64_t rows, int64_t d, float* dw, cudaStream_t stream,
                        CudaErrorText* error) {
  DeviceProductParams p;
  p.a = dz;
  p.a_stride = row_stride;
  p.b = h;
  p.c = dw;
  p.m = ids;
  p.n = d;
  p.k = rows;
  p.accumulate = true;
  p.stream = stream;
  return device_product(p, error);
}

struct BackwardMemory {
  int64_t wave_rows;  // at most
  int64_t chunk_ids;  // a multiple of kHeadBlock, or V rounded up to one
  __nv_bfloat16* dz;  // [chunk_ids, wave_rows rounded up to 8]
  RowGradient* gradients;
  int32_t* tokens;
  __nv_bfloat16* h;  // [wave_rows, D] and
  float* dh;         // [wave_rows, D], if rows are given
};

size_t carve_backward(BackwardMemory& m, void* workspace, int64_t rows, int64_t v, int64_t d,
                      bool rows_given) {
  Carver carver{static_cast<uint8_t*>(workspace)};
  m.wave_rows = smaller(rows, kWaveRows);
  const int64_t padded = round_up(m.wave_rows, kTileRows);
  m.chunk_ids =
      smaller(round_up(v, kHeadBlock), kChunkIds * (padded == 0 ? 1 : kWaveRows / padded));
  m.dz = carver.take<__nv_bfloat16>(m.chunk_ids * round_up(m.wave_rows, 8));
  m.gradients = carver.take<RowGradient>(m.wave_rows);
  m.tokens = carver.take<int32_t>(m.wave_rows);
  m.h = rows_given ? carver.take<__nv_bfloat16>(m.wave_rows * d) : nullptr;
  m.dh = rows_given ? carver.take<float>(m.wave_rows * d) : nullptr;
  return carver.used;
}

constexpr unsigned kCopyBlocks = 528;

// Rows [first, first + count) of those with a gradient.
CudaCode backward_wave(const LmHeadBackwardParams& p, const BackwardMemory& m, int64_t first,
                       int64_t count, CudaErrorText* error) {
  const auto stream = static_cast<cudaStream_t>(p.stream);
  const int32_t* rows = p.rows_R == nullptr ? nullptr : p.rows_R + first;
  LmHeadBackwardParams wave = p;
  const auto* h = static_cast<const __nv_bfloat16*>(p.h_BD);
  float* dh = m.dh;
  if (rows != nullptr) {
    copy_rows_kernel<<<kCopyBlocks, 256, 0, stream>>>(reinterpret_cast<const uint4*>(h),
                                                      reinterpret_cast<uint4*>(m.h), rows, count,
                                                      p.d / 8, false);
    h = m.h;
  } else {
    h += first * p.d;
    dh = p.dh_BD + first * p.d;
    wave.token_B += first;
    wave.lse_B += first;
    wave.dlogprob_B += first;
    if (p.dentropy_B != nullptr) {
      wave.entropy_B += first;
      wave.dentropy_B += first;
    }
  }
  prepare_backward<<<blocks_for(count, 256), 256, 0, stream>>>(wave, rows, static_cast<int>(count),
                                                               m.gradients, m.tokens);
  GRADUS_CUDA_CALL(cudaGetLastError());
  const int64_t row_stride = round_up(count, 8);
  for (int64_t id = 0; id < p.v; id += m.chunk_ids) {
    const int64_t ids = smaller(m.chunk_ids, p.v - id);
    GRADUS_CUDA_RETURN(make_gradients({p.w_VD, h, m.gradients, m.tokens, nullptr, p.temperature,
                                       count, p.d, id, ids, m.dz, row_stride},
                                      stream, error));
    const auto* w = static_cast<const __nv_bfloat16*>(p.w_VD) + id * p.d;
    GRADUS_CUDA_RETURN(
        add_to_hidden(m.dz, row_stride, w, ids, count, p.d, dh, id > 0, stream, error));
    if (p.dw_VD != nullptr) {
      GRADUS_CUDA_RETURN(
          add_to_weights(m.dz, row_stride, h, ids, count, p.d, p.dw_VD + id * p.d, stream, error));
    }
  }
  if (rows != nullptr) {
    copy_rows_kernel<<<kCopyBlocks, 256, 0, stream>>>(reinterpret_cast<const uint4*>(m.dh),
                                                      reinterpret_cast<uint4*>(p.dh_BD), rows,
                                                      count, p.d / 4, true);
    GRADUS_CUDA_CALL(cudaGetLastError());
  }
  return CudaCode::kOk;
}

struct TrainMemory {
  int64_t wave_rows;  // at most
  void* score;        // the scorer's workspace
  size_t score_bytes;
  __nv_bfloat16* e;                                   // [V, wave_rows rounded up to 8]
  float *references, *temperatures, *lses, *factors;  // [wave_rows]
  RowGradient* gradients;
  uint32_t* again;
  __nv_bfloat16* h;  // [wave_rows, D]
};

size_t carve_train(TrainMemory& m, void* workspace, int64_t b, int64_t v, int64_t d) {
  Carver carver{static_cast<uint8_t*>(workspace)};
  int64_t rows = kStoredBytes / (2 * v) / kTileRows * kTileRows;
  if (rows < kTileRows) rows = kTileRows;
  m.wave_rows = smaller(b, smaller(rows, kScoreRows));
  m.score_bytes = score_workspace_bytes(m.wave_rows, v);
  m.score = carver.take<uint8_t>(static_cast<int64_t>(m.score_bytes));
  m.e = carver.take<__nv_bfloat16>(v * round_up(m.wave_rows, 8));
  m.references = carver.take<float>(m.wave_rows);
  m.temperatures = carver.take<float>(m.wave_rows);
  m.lses = carver.take<float>(m.wave_rows);
  m.factors = carver.take<float>(m.wave_rows);
  m.gradients = carver.take<RowGradient>(m.wave_rows);
  m.again = carver.take<uint32_t>(1);
  m.h = carver.take<__nv_bfloat16>(m.wave_rows * d);
  return carver.used;
}

CudaCode train_wave(const LmHeadTrainParams& p, const TrainMemory& m, int64_t first, int64_t count,
                    CudaErrorText* error) {
  const auto stream = static_cast<cudaStream_t>(p.stream);
  const auto* w = static_cast<const __nv_bfloat16*>(p.w_VD);
  const auto* h = static_cast<const __nv_bfloat16*>(p.h_BD) + first * p.d;
  const int rows = static_cast<int>(count), d = static_cast<int>(p.d);
  const int64_t row_stride = round_up(count, 8);
  const unsigned row_blocks = blocks_for(count, 256);
  reference_kernel<<<blocks_for(count, 8), 256, 0, stream>>>(w, h, p.token_B + first, p.temperature,
                                                             rows, d, m.references, m.temperatures);
  GRADUS_CUDA_CALL(cudaGetLastError());
  LmHeadScoreParams score;
  score.w_VD = w;
  score.h_BD = h;
  score.temperature_B = m.temperatures;
  score.token_B = p.token_B + first;
  score.b = count;
  score.v = p.v;
  score.d = p.d;
  score.logprob_B = p.logprob_B + first;
  score.lse_B = p.lse_B == nullptr ? m.lses : p.lse_B + first;
  score.entropy_B = p.entropy_B == nullptr ? nullptr : p.entropy_B + first;
  score.workspace = m.score;
  score.workspace_bytes = m.score_bytes;
  score.stream = p.stream;
  GRADUS_CUDA_RETURN(score_storing(score, {m.references, m.e, row_stride}, error));

  const TrainedRows trained = {score.token_B, p.dlogprob_B + first, score.logprob_B,
                               score.lse_B,   m.references,         p.temperature,
                               rows};
  GRADUS_CUDA_CALL(cudaMemsetAsync(m.again, 0, sizeof(*m.again), stream));
  normalise_kernel<<<row_blocks, 256, 0, stream>>>(trained, m.e, row_stride, m.factors, m.gradients,
                                                   m.again);
  GRADUS_CUDA_CALL(cudaGetLastError());
  GRADUS_CUDA_RETURN(make_gradients({w, h, m.gradients, score.token_B, m.again, p.temperature,
                                     count, p.d, 0, p.v, m.e, row_stride},
                                    stream, error));
  renormalise_kernel<<<row_blocks, 256, 0, stream>>>(trained, m.again, m.factors);
  float* dh = p.dh_BD + first * p.d;
  GRADUS_CUDA_RETURN(add_to_hidden(m.e, row_stride, w, p.v, count, p.d, dh, false, stream, error));
  scale_gradients<<<kCopyBlocks, 256, 0, stream>>>(reinterpret_cast<float4*>(dh), m.factors, count,
                                                   p.d / 4);
  GRADUS_CUDA_CALL(cudaGetLastError());
  if (p.dw_VD == nullptr) return CudaCode::kOk;
  scale_hidden<<<kCopyBlocks, 256, 0, stream>>>(reinterpret_cast<const __nv_bfloat162*>(h),
                                                m.factors, reinterpret_cast<__nv_bfloat162*>(m.h),
                                                count, p.d / 2);
  GRADUS_CUDA_CALL(cudaGetLastError());
  return add_to_weights(m.e, row_stride, m.h, p.v, count, p.d, p.dw_VD, stream, error);
}

}  // namespace

size_t lm_head_backward_workspace_bytes(int64_t rows, int64_t v, int64_t d, bool rows_given) {
  BackwardMemory m = {};
  return carve_backward(m, nullptr, rows, v, d, rows_given);
}

size_t lm_head_train_workspace_bytes(int64_t b, int64_t v, int64_t d) {
  TrainMemory m = {};
  return carve_train(m, nullptr, b, v, d);
}

CudaCode lm_head_backward(const LmHeadBackwardParams& p, CudaErrorText* error) {
  const bool given = p.rows_R != nullptr;
  const int64_t rows = given ? p.r : p.b;
  if (given) {
    GRADUS_CUDA_CALL(cudaMemsetAsync(p.dh_BD, 0, static_cast<size_t>(p.b * p.d) * sizeof(float),
                                     static_cast<cudaStream_t>(p.stream)));
  }
  BackwardMemory m = {};
  carve_backward(m, p.workspace, rows, p.v, p.d, given);
  for (int64_t first = 0; first < rows; first += m.wave_rows) {
    GRADUS_CUDA_RETURN(backward_wave(p, m, first, smaller(m.wave_rows, rows - first), error));
  }
  return CudaCode::kOk;
}

CudaCode lm_head_train(const LmHeadTrainParams& p, CudaErrorText* error) {
  TrainMemory m = {};
  carve_train(m, p.workspace, p.b, p.v, p.d);
  // The scorer's blocks of threads meet through its first words, which may be anything now.
  GRADUS_CUDA_CALL(
      cudaMemsetAsync(m.score, 0, kScoreControlBytes, static_cast<cudaStream_t>(p.stream)));
  for (int64_t first = 0; first < p.b; first += m.wave_rows) {
    GRADUS_CUDA_RETURN(train_wave(p, m, first, smaller(m.wave_rows, p.b - first), error));
  }
  return CudaCode::kOk;
}

}  // namespace gradus::kernels::cuda
