// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace gradus::kernels {

struct LmHeadSampleParams;
struct LmHeadScoreParams;
struct LmHeadBackwardParams;
struct LmHeadTrainParams;
struct DeviceProductParams;
struct DeviceAdamWParams;
struct DeviceSumOfSquaresParams;
struct DeviceHashParams;
struct LinearParams;
struct DeviceEmbedParams;
struct DeviceRmsNormParams;
struct DeviceRotateParams;
struct DeviceAttentionParams;
struct SlotState;
struct SlotStart;
struct PageCopy;
struct DeviceRmsNormBackwardParams;
struct DeviceColumnSumsParams;
struct DeviceSwigluBackwardParams;
struct DeviceRotateRowsParams;
struct DeviceRotateBackwardParams;
struct DeviceEmbedBackwardParams;
struct DeviceAttentionBackwardParams;

namespace cuda {

// What libgradus_cuda.so offers: a table of functions behind one C symbol, so that the binary needs
// neither it nor CUDA to start. Errors cross as a code and a text, since the two sides may come
// from different compilers.

enum class CudaCode : int32_t { kOk = 0, kUnavailable = 1, kInvalidArgument = 2 };

struct CudaErrorText {
  char text[512];
};

struct CudaDevice {
  char name[256];
  int32_t major, minor;    // compute capability
  int32_t num_processors;  // streaming multiprocessors
  int32_t l2_bytes;
  uint64_t memory_bytes, free_bytes;
  int32_t driver_version, runtime_version;  // 1000 major + 10 minor
};

struct LmHeadFunctions {
  CudaCode (*sample)(const LmHeadSampleParams&, CudaErrorText*);
  CudaCode (*score)(const LmHeadScoreParams&, CudaErrorText*);
  size_t (*sample_workspace_bytes)(int64_t b, int64_t v);
  size_t (*score_workspace_bytes)(int64_t b, int64_t v);
  CudaCode (*backward)(const LmHeadBackwardParams&, CudaErrorText*);
  CudaCode (*train)(const LmHeadTrainParams&, CudaErrorText*);
  size_t (*backward_workspace_bytes)(int64_t rows, int64_t v, int64_t d, bool rows_given);
  size_t (*train_workspace_bytes)(int64_t b, int64_t v, int64_t d);
};

// kernels/device_forward.h
struct ForwardFunctions {
  CudaCode (*linear)(const LinearParams&, CudaErrorText*);
  CudaCode (*embed)(const DeviceEmbedParams&, CudaErrorText*);
  CudaCode (*rms_norm)(const DeviceRmsNormParams&, CudaErrorText*);
  CudaCode (*rotate)(const DeviceRotateParams&, CudaErrorText*);
  CudaCode (*attention)(const DeviceAttentionParams&, CudaErrorText*);
  CudaCode (*copy_pages)(void* pages, const PageCopy* copies, int64_t count, int64_t page_bytes,
                         int64_t num_layers, int64_t layer_bytes, void* stream, CudaErrorText*);
  CudaCode (*copy_rows)(const void* from, const int32_t* rows, void* to, int64_t count,
                        int64_t row_bytes, void* stream, CudaErrorText*);
  CudaCode (*start_slots)(const SlotState&, const SlotStart* starts, int64_t count,
                          const int32_t* tokens_from, int32_t* tables, const int32_t* new_tables,
                          int64_t table_stride, void* stream, CudaErrorText*);
  CudaCode (*advance_slots)(const SlotState&, const int32_t* sampled, int64_t count, void* stream,
                            CudaErrorText*);
};

// kernels/device_product.h
struct ProductFunctions {
  CudaCode (*run)(const DeviceProductParams&, CudaErrorText*);
};

// kernels/device_backward.h
struct BackwardFunctions {
  CudaCode (*rms_norm)(const DeviceRmsNormBackwardParams&, CudaErrorText*);
  CudaCode (*column_sums)(const DeviceColumnSumsParams&, CudaErrorText*);
  CudaCode (*swiglu)(const DeviceSwigluBackwardParams&, CudaErrorText*);
  CudaCode (*rotate_rows)(const DeviceRotateRowsParams&, CudaErrorText*);
  CudaCode (*rotate)(const DeviceRotateBackwardParams&, CudaErrorText*);
  CudaCode (*embed)(const DeviceEmbedBackwardParams&, CudaErrorText*);
  CudaCode (*round)(const float* x, void* y, int64_t count, void* stream, CudaErrorText*);
  CudaCode (*attention)(const DeviceAttentionBackwardParams&, CudaErrorText*);
};

// kernels/device_optimizer.h
struct OptimizerFunctions {
  CudaCode (*adamw)(const DeviceAdamWParams&, CudaErrorText*);
  CudaCode (*sum_of_squares)(const DeviceSumOfSquaresParams&, CudaErrorText*);
  CudaCode (*hash)(const DeviceHashParams&, CudaErrorText*);
};

// Streams, and work that was recorded once to be launched often.
struct StreamFunctions {
  CudaCode (*create)(void** stream, CudaErrorText*);
  CudaCode (*destroy)(void* stream, CudaErrorText*);
  CudaCode (*synchronize)(void* stream, CudaErrorText*);
  CudaCode (*begin_recording)(void* stream, CudaErrorText*);
  CudaCode (*end_recording)(void* stream, void** graph, CudaErrorText*);
  CudaCode (*launch_graph)(void* graph, void* stream, CudaErrorText*);
  CudaCode (*destroy_graph)(void* graph, CudaErrorText*);
  CudaCode (*allocate_pinned)(void** p, size_t bytes, CudaErrorText*);
  CudaCode (*release_pinned)(void* p, CudaErrorText*);
  CudaCode (*event_destroy)(void* event, CudaErrorText*);
  CudaCode (*event_synchronize)(void* event, CudaErrorText*);
};

// Memory, order and clocks of one device; what tests and benchmarks need of a runtime.
struct DeviceFunctions {
  CudaCode (*count)(int32_t* count, CudaErrorText*);
  CudaCode (*describe)(int32_t device, CudaDevice*, CudaErrorText*);
  CudaCode (*select)(int32_t device, CudaErrorText*);
  CudaCode (*allocate)(void** p, size_t bytes, CudaErrorText*);
  CudaCode (*release)(void* p, CudaErrorText*);
  CudaCode (*fill)(void* p, int32_t byte, size_t bytes, void* stream, CudaErrorText*);
  CudaCode (*copy)(void* to, const void* from, size_t bytes, void* stream, CudaErrorText*);
  CudaCode (*synchronize)(CudaErrorText*);
  CudaCode (*event_create)(void** event, CudaErrorText*);
  CudaCode (*event_record)(void* event, void* stream, CudaErrorText*);
  CudaCode (*event_elapsed_ms)(void* begin, void* end, float* ms, CudaErrorText*);
};

// Plain kernels to compare with, and rulers.
struct CheckFunctions {
  // See kernels/cuda_check.h.
  CudaCode (*logits)(const void* w_VD, const void* h_BD, float* logits_BV, int64_t b, int64_t v,
                     int64_t d, int32_t parts, void* stream, CudaErrorText*);
  CudaCode (*random_bf16)(void* p, int64_t count, float scale, uint64_t seed, void* stream,
                          CudaErrorText*);
  CudaCode (*cublas_logits)(const void* w_VD, const void* h_BD, void* logits_BV, int64_t b,
                            int64_t v, int64_t d, void* stream, CudaErrorText*);
  CudaCode (*read)(const void* p, size_t bytes, float* sum, void* stream, CudaErrorText*);
};

// kernels/nccl.h. Nothing here waits: what takes time is asked after by state() and is_done().
struct NcclFunctions {
  // Loads NCCL, from `library` or, if that is empty, from where the machine has it.
  CudaCode (*load)(const char* library, CudaErrorText*);
  CudaCode (*make_id)(void* id, CudaErrorText*);
  // Begins to connect; no operation before state() says that nothing is under way.
  CudaCode (*create)(const void* id, int32_t rank, int32_t size, void** communicator,
                     CudaErrorText*);
  CudaCode (*all_reduce)(void* communicator, const float* from, float* to, int64_t count,
                         void* stream, CudaErrorText*);
  CudaCode (*reduce_scatter)(void* communicator, const float* from, float* to, int64_t count,
                             void* stream, CudaErrorText*);
  CudaCode (*all_gather)(void* communicator, const void* from, void* to, int64_t bytes,
                         void* stream, CudaErrorText*);
  CudaCode (*broadcast)(void* communicator, void* p, int64_t bytes, int32_t root, void* stream,
                        CudaErrorText*);
  // Whether the last call is still under way; the error of one that failed later.
  CudaCode (*state)(void* communicator, int32_t* is_busy, CudaErrorText*);
  // Whether the work before a recorded event is done.
  CudaCode (*is_done)(void* event, int32_t* is_done, CudaErrorText*);
  CudaCode (*finalize)(void* communicator, CudaErrorText*);  // state() says when it is over
  CudaCode (*destroy)(void* communicator, CudaErrorText*);
  CudaCode (*abort)(void* communicator, CudaErrorText*);  // instead of destroy()
};

inline constexpr uint32_t kCudaTableVersion = 9;
struct CudaTable {
  uint32_t version;  // kCudaTableVersion of the library's build
  uint32_t bytes;    // sizeof(CudaTable)
  DeviceFunctions device;
  StreamFunctions stream;
  LmHeadFunctions lm_head;
  ForwardFunctions forward;
  ProductFunctions product;
  BackwardFunctions backward;
  OptimizerFunctions optimizer;
  CheckFunctions check;
  NcclFunctions nccl;
};

inline constexpr const char* kCudaTableSymbol = "gradus_cuda_table";

}  // namespace cuda
}  // namespace gradus::kernels
