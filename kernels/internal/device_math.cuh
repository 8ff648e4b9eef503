// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

#include "kernels/internal/cuda_host.cuh"
#include "kernels/stream.h"

// Arithmetic and launches that the forward's kernels share: one exponential for all of them.
namespace gradus::kernels::cuda {

inline constexpr float kLog2OfE = 1.44269504088896341f;

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Eight neighbouring bf16 numbers.
union Eight {
  uint4 bits;
  __nv_bfloat162 pairs[4];
};

// 1 / x of x in [1, 2^126], to half a unit in the last place but for a few mantissas: one Newton
// step from the approximation, without the branch that other numbers need. The same bits wherever
// it is called.
__device__ inline float reciprocal_of_one_and_more(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return __fmaf_rn(y, __fmaf_rn(-x, y, 1.0f), y);
}

// silu(gate) * up, each operation rounded once.
__device__ inline float swiglu(float gate, float up) {
  const float e = exp2_fast(__fmul_rn(gate, -kLog2OfE));
  const float sigmoid = reciprocal_of_one_and_more(fminf(__fadd_rn(1.0f, e), 0x1p126f));
  return __fmul_rn(__fmul_rn(gate, sigmoid), up);
}

// Sum over a warp by one tree, in all lanes.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = __fadd_rn(x, __shfl_xor_sync(0xFFFFFFFFu, x, mask));
  return x;
}

// Programmatic dependent launch: a kernel may start while the one before it on the stream still
// runs. Every kernel of the forward calls both, in this order, and reads nothing that another
// kernel writes before the second; so when it ends, all kernels before it have ended.
__device__ inline void start_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ inline void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

template <class Kernel, class... Arguments>
CudaCode launch_clusters(Kernel kernel, dim3 grid, dim3 cluster, int threads, int shared_bytes,
                         Stream stream, CudaErrorText* error, const Arguments&... arguments) {
  // One division of a processor's memory for all kernels: to change it, a processor must be empty,
  // and the next kernel could not begin beside this one.
  GRADUS_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                        cudaSharedmemCarveoutMaxShared));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  config.attrs = attributes;
  config.numAttrs = cluster.x * cluster.y * cluster.z > 1 ? 2 : 1;
  GRADUS_CUDA_CALL(cudaLaunchKernelEx(&config, kernel, arguments...));
  return CudaCode::kOk;
}

template <class Kernel, class... Arguments>
CudaCode launch_dependent(Kernel kernel, dim3 grid, int threads, int shared_bytes, Stream stream,
                          CudaErrorText* error, const Arguments&... arguments) {
  return launch_clusters(kernel, grid, dim3(1), threads, shared_bytes, stream, error, arguments...);
}

}  // namespace gradus::kernels::cuda
