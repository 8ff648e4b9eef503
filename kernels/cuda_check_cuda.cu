// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/device_product_params.h"
#include "kernels/internal/cuda_host.cuh"
#include "kernels/internal/lm_head_math.cuh"

// Kernels written to be read, which checks compare the fast ones with.
namespace gradus::kernels::cuda {
namespace {

// Two bf16 of row `row`, columns k and k + 1; zero outside.
__device__ uint32_t pair_at(const __nv_bfloat16* p, int64_t row, int64_t rows, int64_t k,
                            int64_t d) {
  if (row >= rows || k >= d) return 0;
  return *reinterpret_cast<const uint32_t*>(p + row * d + k);
}

// A warp makes 16 vocabulary ids x 8 rows of h, with k in order.
__global__ void logits_kernel(const __nv_bfloat16* w, const __nv_bfloat16* h, float* logits,
                              int64_t b, int64_t v, int64_t d, int parts) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int64_t id = (int64_t{blockIdx.x} * 4 + threadIdx.x / 32) * 16,
                row = int64_t{blockIdx.y} * 8;
  if (id >= v) return;
  const int64_t part = ((d + 15) / 16 + parts - 1) / parts * 16;
  float total[4] = {0, 0, 0, 0};
  for (int64_t begin = 0; begin < d; begin += part) {
    float acc[4] = {0, 0, 0, 0};
    for (int64_t k = begin; k < begin + part && k < d; k += 16) {
      const uint32_t a[4] = {
          pair_at(w, id + g, v, k + 2 * c, d), pair_at(w, id + g + 8, v, k + 2 * c, d),
          pair_at(w, id + g, v, k + 2 * c + 8, d), pair_at(w, id + g + 8, v, k + 2 * c + 8, d)};
      const uint32_t x[2] = {pair_at(h, row + g, b, k + 2 * c, d),
                             pair_at(h, row + g, b, k + 2 * c + 8, d)};
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
          "{%8, %9}, {%0, %1, %2, %3};"
          : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(x[0]), "r"(x[1]));
    }
    for (int i = 0; i < 4; ++i) total[i] = begin == 0 ? acc[i] : total[i] + acc[i];
  }
  for (int i = 0; i < 4; ++i) {
    const int64_t token = id + g + i / 2 * 8, n = row + 2 * c + i % 2;
    if (token < v && n < b) logits[n * v + token] = total[i];
  }
}

__global__ void random_kernel(__nv_bfloat16* p, int64_t count, float scale, uint64_t seed) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i * 4 < count; i += stride) {
    const Words4 r = philox(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                            static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), 77);
    float x[4];
    for (int j = 0; j < 4; j += 2) {
      const float radius = sqrtf(-2 * logf((r.w[j] + 0.5f) * 0x1p-32f));
      sincospif(r.w[j + 1] * 0x1p-31f, &x[j], &x[j + 1]);
      x[j] *= radius * scale;
      x[j + 1] *= radius * scale;
    }
    for (int j = 0; j < 4 && i * 4 + j < count; ++j) p[i * 4 + j] = __float2bfloat16(x[j]);
  }
}

__global__ void read_kernel(const float4* p, int64_t count, float* sum) {
  float total = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < count; i += 8 * stride) {
    float4 x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = __ldcs(p + i + j * stride);
#pragma unroll
    for (int j = 0; j < 8; ++j) total += (x[j].x + x[j].y) + (x[j].z + x[j].w);
  }
  for (; i < count; i += stride) total += p[i].x;
  if (total == 12345.678f) *sum = total;  // keeps the reads
}

CudaCode logits(const void* w, const void* h, float* logits, int64_t b, int64_t v, int64_t d,
                int32_t parts, void* stream, CudaErrorText* error) {
  const dim3 grid(static_cast<unsigned>((v + 63) / 64), static_cast<unsigned>((b + 7) / 8));
  logits_kernel<<<grid, 128, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const __nv_bfloat16*>(w), static_cast<const __nv_bfloat16*>(h), logits, b, v, d,
      parts);
  GRADUS_CUDA_CALL(cudaGetLastError());
  return CudaCode::kOk;
}

CudaCode random_bf16(void* p, int64_t count, float scale, uint64_t seed, void* stream,
                     CudaErrorText* error) {
  random_kernel<<<1024, 256, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<__nv_bfloat16*>(p),
                                                                     count, scale, seed);
  GRADUS_CUDA_CALL(cudaGetLastError());
  return CudaCode::kOk;
}

CudaCode cublas_logits(const void* w, const void* h, void* logits, int64_t b, int64_t v, int64_t d,
                       void* stream, CudaErrorText* error) {
  DeviceProductParams p;
  p.a = h;
  p.b = w;
  p.c = logits;
  p.m = b;
  p.n = v;
  p.k = d;
  p.b_transposed = true;
  p.c_bf16 = true;
  p.stream = stream;
  return device_product(p, error);
}

CudaCode read(const void* p, size_t bytes, float* sum, void* stream, CudaErrorText* error) {
  read_kernel<<<static_cast<unsigned>(num_processors() * 4), 512, 0,
                static_cast<cudaStream_t>(stream)>>>(static_cast<const float4*>(p),
                                                     static_cast<int64_t>(bytes / 16), sum);
  GRADUS_CUDA_CALL(cudaGetLastError());
  return CudaCode::kOk;
}

}  // namespace

CheckFunctions check_functions() { return {logits, random_bf16, cublas_logits, read}; }

}  // namespace gradus::kernels::cuda
