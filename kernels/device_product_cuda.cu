// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdio>
#include <mutex>

#include "kernels/device_product_params.h"
#include "kernels/internal/cuda_host.cuh"

// What is needed of cuBLAS' C interface is declared here: neither its headers nor the library are a
// part of the build.
namespace gradus::kernels::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr int kMaxDevices = 64;

// Values of cuBLAS' and CUDA's enumerations.
constexpr int kSuccess = 0;
constexpr int kPlain = 0, kTransposed = 1;
constexpr int kF32 = 0, kBf16 = 14, kComputeF32 = 68;
constexpr int kDefaultAlgorithm = -1;  // chosen by shapes, strides and alignment
constexpr int kSumInF32 = 16;          // partial sums are never rounded to the type of C

struct CublasFunctions {
  int (*create)(void** handle) = nullptr;
  int (*set_math_mode)(void* handle, int mode) = nullptr;
  int (*set_stream)(void* handle, void* stream) = nullptr;
  int (*set_workspace)(void* handle, void* workspace, size_t bytes) = nullptr;
  int (*gemm)(void* handle, int, int, int m, int n, int k, const void* alpha, const void* a, int,
              int lda, const void* b, int, int ldb, const void* beta, void* c, int, int ldc,
              int compute, int algorithm) = nullptr;
};

struct Cublas {
  CublasFunctions functions;
  void* handles[kMaxDevices] = {};
  void* workspaces[kMaxDevices] = {};
};

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

CudaCode load(CublasFunctions& f, CudaErrorText* error) {
  if (f.gemm != nullptr) return CudaCode::kOk;
  void* library = nullptr;
  for (const char* name : {"libcublas.so.13", "/usr/local/cuda/lib64/libcublas.so.13"}) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    std::snprintf(error->text, sizeof(error->text),
                  "cuBLAS of CUDA 13 is not on this machine (%.200s); install libcublas-13-0 or "
                  "PyPI's nvidia-cublas and name its folder in LD_LIBRARY_PATH",
                  dlerror());
    return CudaCode::kUnavailable;
  }
  if (find(library, "cublasCreate_v2", f.create) &&
      find(library, "cublasSetMathMode", f.set_math_mode) &&
      find(library, "cublasSetStream_v2", f.set_stream) &&
      find(library, "cublasSetWorkspace_v2", f.set_workspace) &&
      find(library, "cublasGemmEx", f.gemm)) {
    return CudaCode::kOk;
  }
  f = {};
  std::snprintf(error->text, sizeof(error->text),
                "libcublas.so.13 lacks a function of cuBLAS 13; is it another library?");
  return CudaCode::kUnavailable;
}

CudaCode refused(const char* what, int status, CudaErrorText* error) {
  std::snprintf(error->text, sizeof(error->text), "%s ended with cuBLAS' status %d", what, status);
  return CudaCode::kUnavailable;
}

CudaCode open_device(Cublas& cublas, int device, CudaErrorText* error) {
  GRADUS_CUDA_RETURN(load(cublas.functions, error));
  if (cublas.handles[device] != nullptr) return CudaCode::kOk;
  void* workspace = nullptr;
  GRADUS_CUDA_CALL(cudaMalloc(&workspace, kWorkspaceBytes));
  void* handle = nullptr;
  int status = cublas.functions.create(&handle);
  if (status == kSuccess) status = cublas.functions.set_math_mode(handle, kSumInF32);
  if (status != kSuccess) {
    cudaFree(workspace);
    return refused("cublasCreate", status, error);
  }
  cublas.workspaces[device] = workspace;
  cublas.handles[device] = handle;
  return CudaCode::kOk;
}

}  // namespace

CudaCode device_product(const DeviceProductParams& p, CudaErrorText* error) {
  static std::mutex mutex;
  static Cublas cublas;
  const std::lock_guard lock(mutex);
  int device = 0;
  GRADUS_CUDA_CALL(cudaGetDevice(&device));
  if (device >= kMaxDevices) return refused("the choice of a device past 63", device, error);
  GRADUS_CUDA_RETURN(open_device(cublas, device, error));
  const CublasFunctions& f = cublas.functions;
  void* const handle = cublas.handles[device];
  // A new stream takes the workspace away, so it comes after.
  int status = f.set_stream(handle, p.stream);
  if (status == kSuccess) {
    status = f.set_workspace(handle, cublas.workspaces[device], kWorkspaceBytes);
  }
  if (status != kSuccess) return refused("cublasSetWorkspace", status, error);
  // cuBLAS counts by columns: it sees each matrix transposed, so C^T = op(B)^T op(A)^T.
  const auto stride = [](int64_t given, int64_t width) {
    return static_cast<int>(given == 0 ? width : given);
  };
  const float one = 1, zero = 0;
  status =
      f.gemm(handle, p.b_transposed ? kTransposed : kPlain, p.a_transposed ? kTransposed : kPlain,
             static_cast<int>(p.n), static_cast<int>(p.m), static_cast<int>(p.k), &one, p.b, kBf16,
             stride(p.b_stride, p.b_transposed ? p.k : p.n), p.a, kBf16,
             stride(p.a_stride, p.a_transposed ? p.m : p.k), p.accumulate ? &one : &zero, p.c,
             p.c_bf16 ? kBf16 : kF32, stride(p.c_stride, p.n), kComputeF32, kDefaultAlgorithm);
  return status == kSuccess ? CudaCode::kOk : refused("cublasGemmEx", status, error);
}

}  // namespace gradus::kernels::cuda
