// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/device_optimizer_params.h"
#include "kernels/internal/cuda_host.cuh"
#include "kernels/internal/device_math.cuh"

namespace gradus::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Products ask for weights before the kernel before them has ended, so these do not let a
// dependent kernel start early.
__global__ __launch_bounds__(kThreads) void adamw_kernel(
    const __grid_constant__ DeviceAdamWParams p) {
  wait_for_previous();
  const float rest1 = __fsub_rn(1.0f, p.beta1), rest2 = __fsub_rn(1.0f, p.beta2);
  const float decay = __fmul_rn(p.learning_rate, p.weight_decay);
  const float rate = __fdiv_rn(p.learning_rate, p.correction1);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.count;
       i += stride) {
    const float g = __fmul_rn(p.gradients[i], p.gradient_scale);
    const float m = __fmaf_rn(p.beta1, p.m[i], __fmul_rn(rest1, g));
    const float v = __fmaf_rn(p.beta2, p.v[i], __fmul_rn(rest2, __fmul_rn(g, g)));
    float w = p.weights[i];
    w = __fmaf_rn(-decay, w, w);
    w = __fsub_rn(w, __fdiv_rn(__fmul_rn(rate, m),
                               __fadd_rn(__fsqrt_rn(__fdiv_rn(v, p.correction2)), p.eps)));
    p.m[i] = m;
    p.v[i] = v;
    p.weights[i] = w;
    if (p.weights_bf16 != nullptr) {
      static_cast<__nv_bfloat16*>(p.weights_bf16)[i] = __float2bfloat16_rn(w);
    }
    if (p.weights_f32 != nullptr) p.weights_f32[i] = w;
  }
}

// The block's sum in thread 0, by one tree.
template <class T>
__device__ T block_total(T x) {
  __shared__ T shared[kThreads];
  shared[threadIdx.x] = x;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  return shared[0];
}

__global__ __launch_bounds__(kThreads) void squares_kernel(const float* values, int64_t count,
                                                           double* sums) {
  start_dependents();
  wait_for_previous();
  double sum = 0;
  const int64_t stride = kSquaresParts * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  }
  sum = block_total(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The mixing step of splitmix64 (Steele et al. 2014).
__device__ uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

__global__ __launch_bounds__(kThreads) void hash_kernel(const uint32_t* values, int64_t count,
                                                        int64_t first, uint64_t* sums) {
  start_dependents();
  wait_for_previous();
  uint64_t sum = 0;
  const int64_t stride = kSquaresParts * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    sum += mixed(mixed(static_cast<uint64_t>(first + i) + 1) + values[i]);
  }
  sum = block_total(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <class T>
__global__ __launch_bounds__(kThreads) void total_kernel(T* sums) {
  start_dependents();
  wait_for_previous();
  T sum = 0;
  for (int64_t i = threadIdx.x; i < kSquaresParts; i += kThreads) sum += sums[i];
  sum = block_total(sum);
  if (threadIdx.x == 0) sums[kSquaresParts] = sum;
}

}  // namespace

CudaCode adamw(const DeviceAdamWParams& p, CudaErrorText* error) {
  const int64_t blocks = (p.count + kThreads - 1) / kThreads, most = num_processors() * 16;
  return launch_dependent(adamw_kernel, dim3(static_cast<unsigned>(blocks < most ? blocks : most)),
                          kThreads, 0, p.stream, error, p);
}

CudaCode sum_of_squares(const DeviceSumOfSquaresParams& p, CudaErrorText* error) {
  GRADUS_CUDA_RETURN(launch_dependent(squares_kernel, dim3(kSquaresParts), kThreads, 0, p.stream,
                                      error, p.values, p.count, p.sums));
  return launch_dependent(total_kernel<double>, dim3(1), kThreads, 0, p.stream, error, p.sums);
}

CudaCode hash_numbers(const DeviceHashParams& p, CudaErrorText* error) {
  GRADUS_CUDA_RETURN(launch_dependent(hash_kernel, dim3(kSquaresParts), kThreads, 0, p.stream,
                                      error, static_cast<const uint32_t*>(p.values), p.count,
                                      p.first, p.sums));
  return launch_dependent(total_kernel<uint64_t>, dim3(1), kThreads, 0, p.stream, error, p.sums);
}

}  // namespace gradus::kernels::cuda
