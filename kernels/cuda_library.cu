// SPDX-License-Identifier: Apache-2.0
#include <cudaTypedefs.h>

#include <cstdio>
#include <cstring>

#include "kernels/internal/cuda_host.cuh"

namespace gradus::kernels::cuda {

CudaCode cuda_error(cudaError_t status, const char* what, CudaErrorText* error) {
  std::snprintf(error->text, sizeof(error->text), "%.300s: %s (%s)", what,
                cudaGetErrorString(status), cudaGetErrorName(status));
  cudaGetLastError();  // not again at the next call, unless the device is lost
  return CudaCode::kUnavailable;
}

namespace {

// A tensor of bf16; size, stride (bytes, from the second dimension on) and box by dimension.
CudaCode encode(CUtensorMap* map, const void* p, int rank, const cuuint64_t* size,
                const cuuint64_t* stride, const cuuint32_t* box, CudaErrorText* error) {
  static PFN_cuTensorMapEncodeTiled_v12000 function = nullptr;
  if (function == nullptr) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    GRADUS_CUDA_CALL(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                      cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) {
      std::snprintf(error->text, sizeof(error->text),
                    "the driver has no cuTensorMapEncodeTiled; driver 525 or newer is needed");
      return CudaCode::kUnavailable;
    }
    function = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }
  const cuuint32_t step[3] = {1, 1, 1};
  const CUresult result = function(
      map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(rank), const_cast<void*>(p),
      size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return CudaCode::kOk;
  std::snprintf(error->text, sizeof(error->text),
                "no tensor map of %lld rows, %lld bytes each, at %p (driver error %d); the pointer "
                "must be 16-byte aligned and the width a multiple of 8",
                static_cast<long long>(size[1]), static_cast<long long>(stride[0]), p,
                static_cast<int>(result));
  return CudaCode::kInvalidArgument;
}

}  // namespace

CudaCode encode_rows(CUtensorMap* map, const void* p, int64_t rows, int64_t columns, int box_rows,
                     int box_columns, CudaErrorText* error) {
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns),
                             static_cast<cuuint32_t>(box_rows)};
  return encode(map, p, 2, size, stride, box, error);
}

CudaCode encode_blocks(CUtensorMap* map, const void* p, int64_t rows, int64_t columns, int box_rows,
                       int box_blocks, CudaErrorText* error) {
  const cuuint64_t size[3] = {64, static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(columns / 64)};
  const cuuint64_t stride[2] = {static_cast<cuuint64_t>(columns) * 2, 128};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows),
                             static_cast<cuuint32_t>(box_blocks)};
  return encode(map, p, 3, size, stride, box, error);
}

int num_processors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

namespace {

CudaCode count_devices(int32_t* count, CudaErrorText* error) {
  *count = 0;
  GRADUS_CUDA_CALL(cudaGetDeviceCount(count));
  return CudaCode::kOk;
}

CudaCode describe(int32_t device, CudaDevice* out, CudaErrorText* error) {
  cudaDeviceProp properties;
  GRADUS_CUDA_CALL(cudaGetDeviceProperties(&properties, device));
  *out = {};
  std::snprintf(out->name, sizeof(out->name), "%s", properties.name);
  out->major = properties.major;
  out->minor = properties.minor;
  out->num_processors = properties.multiProcessorCount;
  out->l2_bytes = properties.l2CacheSize;
  out->memory_bytes = properties.totalGlobalMem;
  size_t free = 0, total = 0;
  GRADUS_CUDA_CALL(cudaSetDevice(device));
  GRADUS_CUDA_CALL(cudaMemGetInfo(&free, &total));
  out->free_bytes = free;
  GRADUS_CUDA_CALL(cudaDriverGetVersion(&out->driver_version));
  GRADUS_CUDA_CALL(cudaRuntimeGetVersion(&out->runtime_version));
  return CudaCode::kOk;
}

CudaCode select(int32_t device, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaSetDevice(device));
  return CudaCode::kOk;
}

CudaCode allocate(void** p, size_t bytes, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaMalloc(p, bytes));
  return CudaCode::kOk;
}

CudaCode release(void* p, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaFree(p));
  return CudaCode::kOk;
}

CudaCode fill(void* p, int32_t byte, size_t bytes, void* stream, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaMemsetAsync(p, byte, bytes, static_cast<cudaStream_t>(stream)));
  return CudaCode::kOk;
}

CudaCode copy(void* to, const void* from, size_t bytes, void* stream, CudaErrorText* error) {
  GRADUS_CUDA_CALL(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)));
  return CudaCode::kOk;
}

CudaCode synchronize(CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaDeviceSynchronize());
  return CudaCode::kOk;
}

CudaCode event_create(void** event, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaEventCreate(reinterpret_cast<cudaEvent_t*>(event)));
  return CudaCode::kOk;
}

CudaCode event_record(void* event, void* stream, CudaErrorText* error) {
  GRADUS_CUDA_CALL(
      cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)));
  return CudaCode::kOk;
}

CudaCode event_elapsed_ms(void* begin, void* end, float* ms, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaEventSynchronize(static_cast<cudaEvent_t>(end)));
  GRADUS_CUDA_CALL(
      cudaEventElapsedTime(ms, static_cast<cudaEvent_t>(begin), static_cast<cudaEvent_t>(end)));
  return CudaCode::kOk;
}

CudaCode stream_create(void** stream, CudaErrorText* error) {
  GRADUS_CUDA_CALL(
      cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking));
  return CudaCode::kOk;
}

CudaCode stream_destroy(void* stream, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaStreamDestroy(static_cast<cudaStream_t>(stream)));
  return CudaCode::kOk;
}

CudaCode stream_synchronize(void* stream, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
  return CudaCode::kOk;
}

CudaCode begin_recording(void* stream, CudaErrorText* error) {
  GRADUS_CUDA_CALL(
      cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeThreadLocal));
  return CudaCode::kOk;
}

CudaCode end_recording(void* stream, void** graph, CudaErrorText* error) {
  cudaGraph_t recorded = nullptr;
  GRADUS_CUDA_CALL(cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &recorded));
  cudaGraphExec_t ready = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&ready, recorded, 0);
  cudaGraphDestroy(recorded);
  if (status != cudaSuccess) return cuda_error(status, "cudaGraphInstantiate", error);
  *graph = ready;
  return CudaCode::kOk;
}

CudaCode launch_graph(void* graph, void* stream, CudaErrorText* error) {
  GRADUS_CUDA_CALL(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)));
  return CudaCode::kOk;
}

CudaCode destroy_graph(void* graph, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
  return CudaCode::kOk;
}

CudaCode allocate_pinned(void** p, size_t bytes, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaMallocHost(p, bytes));
  return CudaCode::kOk;
}

CudaCode release_pinned(void* p, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaFreeHost(p));
  return CudaCode::kOk;
}

CudaCode event_destroy(void* event, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaEventDestroy(static_cast<cudaEvent_t>(event)));
  return CudaCode::kOk;
}

CudaCode event_synchronize(void* event, CudaErrorText* error) {
  GRADUS_CUDA_CALL(cudaEventSynchronize(static_cast<cudaEvent_t>(event)));
  return CudaCode::kOk;
}

}  // namespace
}  // namespace gradus::kernels::cuda

extern "C" __attribute__((visibility("default"))) const gradus::kernels::cuda::CudaTable*
gradus_cuda_table() {
  using namespace gradus::kernels::cuda;
  static const CudaTable table = {
      kCudaTableVersion,
      sizeof(CudaTable),
      {count_devices, describe, select, allocate, release, fill, copy, synchronize, event_create,
       event_record, event_elapsed_ms},
      {stream_create, stream_destroy, stream_synchronize, begin_recording, end_recording,
       launch_graph, destroy_graph, allocate_pinned, release_pinned, event_destroy,
       event_synchronize},
      lm_head_functions(),
      {linear_forward, embed_forward, rms_norm_forward, rotate_forward, attention_forward,
       copy_pages, copy_rows, start_slots, advance_slots},
      {device_product},
      {rms_norm_backward, column_sums, swiglu_backward, rotate_rows, rotate_backward,
       embed_backward, round_rows, attention_backward},
      {adamw, sum_of_squares, hash_numbers},
      check_functions(),
      nccl_functions()};
  return &table;
}
