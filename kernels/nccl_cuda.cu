// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <climits>
#include <cstdio>
#include <mutex>

#include "kernels/internal/cuda_host.cuh"

// What is needed of NCCL's C interface (2.14 or newer) is declared here: neither its header nor the
// library are a part of the build.
namespace gradus::kernels::cuda {
namespace {

// Values of NCCL's enumerations.
constexpr int kSuccess = 0, kInProgress = 7;
constexpr int kUint8 = 1, kFloat32 = 7;
constexpr int kSum = 0;

struct UniqueId {
  char bytes[128];
};

// The settings of NCCL 2.14, which newer ones fill up with their defaults. `blocking` 0: a call
// returns at once and goes on in a thread of NCCL, so that a peer that never comes is seen by us.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21400;
  int blocking = 0;
  int cluster_size = INT_MIN;  // of 2.17: left to NCCL
};
static_assert(sizeof(Config) == 24);

struct Functions {
  int (*unique_id)(UniqueId* id) = nullptr;
  int (*create)(void** communicator, int size, UniqueId id, int rank, Config* config) = nullptr;
  int (*all_reduce)(const void* from, void* to, size_t count, int type, int operation,
                    void* communicator, cudaStream_t stream) = nullptr;
  int (*reduce_scatter)(const void* from, void* to, size_t count, int type, int operation,
                        void* communicator, cudaStream_t stream) = nullptr;
  int (*all_gather)(const void* from, void* to, size_t count, int type, void* communicator,
                    cudaStream_t stream) = nullptr;
  int (*broadcast)(const void* from, void* to, size_t count, int type, int root, void* communicator,
                   cudaStream_t stream) = nullptr;
  int (*async_error)(void* communicator, int* error) = nullptr;
  const char* (*error_string)(int code) = nullptr;
  const char* (*last_error)(void* communicator) = nullptr;
  int (*finalize)(void* communicator) = nullptr;
  int (*destroy)(void* communicator) = nullptr;
  int (*abort)(void* communicator) = nullptr;
};

// Set once, by load().
Functions nccl;

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

CudaCode load(const char* path, CudaErrorText* error) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (nccl.create != nullptr) return CudaCode::kOk;
  void* library = nullptr;
  if (path[0] != '\0') {
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  } else {
    for (const char* name : {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2"}) {
      if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
  }
  if (library == nullptr) {
    std::snprintf(error->text, sizeof(error->text),
                  "NCCL is not on this machine (%.200s); install libnccl2 or PyPI's "
                  "nvidia-nccl-cu13 and name the folder of libnccl.so.2 in LD_LIBRARY_PATH",
                  dlerror());
    return CudaCode::kUnavailable;
  }
  Functions f;
  if (!(find(library, "ncclGetUniqueId", f.unique_id) &&
        find(library, "ncclCommInitRankConfig", f.create) &&
        find(library, "ncclAllReduce", f.all_reduce) &&
        find(library, "ncclReduceScatter", f.reduce_scatter) &&
        find(library, "ncclAllGather", f.all_gather) &&
        find(library, "ncclBroadcast", f.broadcast) &&
        find(library, "ncclCommGetAsyncError", f.async_error) &&
        find(library, "ncclGetErrorString", f.error_string) &&
        find(library, "ncclGetLastError", f.last_error) &&
        find(library, "ncclCommFinalize", f.finalize) &&
        find(library, "ncclCommDestroy", f.destroy) && find(library, "ncclCommAbort", f.abort))) {
    std::snprintf(error->text, sizeof(error->text),
                  "%.200s lacks a function of NCCL 2.14 or newer; is it another library?",
                  path[0] != '\0' ? path : "libnccl.so.2");
    dlclose(library);
    return CudaCode::kUnavailable;
  }
  nccl = f;
  return CudaCode::kOk;
}

// What a call that returned `code` comes to; `communicator` may be null.
CudaCode result(int code, const char* what, void* communicator, CudaErrorText* error) {
  if (code == kSuccess || code == kInProgress) return CudaCode::kOk;
  const char* more = nccl.last_error(communicator);
  std::snprintf(error->text, sizeof(error->text), "%s: %.100s%s%.300s", what,
                nccl.error_string(code), more != nullptr && more[0] != '\0' ? ": " : "",
                more != nullptr ? more : "");
  return CudaCode::kUnavailable;
}

CudaCode make_id(void* id, CudaErrorText* error) {
  return result(nccl.unique_id(static_cast<UniqueId*>(id)), "ncclGetUniqueId", nullptr, error);
}

CudaCode create(const void* id, int32_t rank, int32_t size, void** communicator,
                CudaErrorText* error) {
  Config config;
  *communicator = nullptr;
  return result(nccl.create(communicator, size, *static_cast<const UniqueId*>(id), rank, &config),
                "ncclCommInitRankConfig", nullptr, error);
}

CudaCode all_reduce(void* communicator, const float* from, float* to, int64_t count, void* stream,
                    CudaErrorText* error) {
  return result(nccl.all_reduce(from, to, static_cast<size_t>(count), kFloat32, kSum, communicator,
                                static_cast<cudaStream_t>(stream)),
                "ncclAllReduce", communicator, error);
}

CudaCode reduce_scatter(void* communicator, const float* from, float* to, int64_t count,
                        void* stream, CudaErrorText* error) {
  return result(nccl.reduce_scatter(from, to, static_cast<size_t>(count), kFloat32, kSum,
                                    communicator, static_cast<cudaStream_t>(stream)),
                "ncclReduceScatter", communicator, error);
}

CudaCode all_gather(void* communicator, const void* from, void* to, int64_t bytes, void* stream,
                    CudaErrorText* error) {
  return result(nccl.all_gather(from, to, static_cast<size_t>(bytes), kUint8, communicator,
                                static_cast<cudaStream_t>(stream)),
                "ncclAllGather", communicator, error);
}

CudaCode broadcast(void* communicator, void* p, int64_t bytes, int32_t root, void* stream,
                   CudaErrorText* error) {
  return result(nccl.broadcast(p, p, static_cast<size_t>(bytes), kUint8, root, communicator,
                               static_cast<cudaStream_t>(stream)),
                "ncclBroadcast", communicator, error);
}

CudaCode state(void* communicator, int32_t* is_busy, CudaErrorText* error) {
  int last = kSuccess;
  *is_busy = 0;
  GRADUS_CUDA_RETURN(
      result(nccl.async_error(communicator, &last), "ncclCommGetAsyncError", communicator, error));
  *is_busy = last == kInProgress ? 1 : 0;
  return result(last, "NCCL", communicator, error);
}

CudaCode is_done(void* event, int32_t* is_done, CudaErrorText* error) {
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(event));
  *is_done = status == cudaSuccess ? 1 : 0;
  if (status == cudaSuccess || status == cudaErrorNotReady) return CudaCode::kOk;
  return cuda_error(status, "cudaEventQuery", error);
}

CudaCode finalize(void* communicator, CudaErrorText* error) {
  return result(nccl.finalize(communicator), "ncclCommFinalize", communicator, error);
}

CudaCode destroy(void* communicator, CudaErrorText* error) {
  return result(nccl.destroy(communicator), "ncclCommDestroy", nullptr, error);
}

CudaCode abort_all(void* communicator, CudaErrorText* error) {
  return result(nccl.abort(communicator), "ncclCommAbort", nullptr, error);
}

}  // namespace

NcclFunctions nccl_functions() {
  return {load,      make_id, create,  all_reduce, reduce_scatter, all_gather,
          broadcast, state,   is_done, finalize,   destroy,        abort_all};
}

}  // namespace gradus::kernels::cuda
