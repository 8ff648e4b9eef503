// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/internal/cuda_table.h"

namespace gradus::kernels::cuda {

// Sets the text and returns the code, for `what` that ended with `status`.
CudaCode cuda_error(cudaError_t status, const char* what, CudaErrorText* error);

// Description of a matrix [rows, columns] of bf16 for the tensor copy engine, in boxes of box_rows
// x box_columns (64) with the 128-byte swizzle.
CudaCode encode_rows(CUtensorMap* map, const void* p, int64_t rows, int64_t columns, int box_rows,
                     int box_columns, CudaErrorText* error);

// The same matrix, columns a multiple of 64, in boxes of box_blocks times 64 columns: planes of 64
// columns, one after the other.
CudaCode encode_blocks(CUtensorMap* map, const void* p, int64_t rows, int64_t columns, int box_rows,
                       int box_blocks, CudaErrorText* error);

// Streaming multiprocessors of the current device.
int num_processors();

LmHeadFunctions lm_head_functions();
CheckFunctions check_functions();
NcclFunctions nccl_functions();

// Cuts a workspace into arrays that begin at multiples of 256; with no memory it counts alone.
struct Carver {
  uint8_t* next;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* p = next == nullptr ? nullptr : reinterpret_cast<T*>(next + used);
    used += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return p;
  }
};

// The scorer of at most kScoreRows rows that also stores exp(z / T - reference) as bf16. All rows
// have the same temperature.
inline constexpr int64_t kScoreRows = 2048;  // of one launch: 16 bytes for each row and block
struct StoredExponentials {
  const float* references_B;
  void* e_VB;          // [V, row_stride]
  int64_t row_stride;  // >= B, a multiple of 8; what is past B becomes finite
};
CudaCode score_storing(const LmHeadScoreParams& p, const StoredExponentials& storing,
                       CudaErrorText* error);
size_t score_workspace_bytes(int64_t b, int64_t v);
inline constexpr size_t kScoreControlBytes = 256;  // at its beginning, to be zero before the first

// See kernels/lm_head.h.
CudaCode lm_head_backward(const LmHeadBackwardParams& p, CudaErrorText* error);
CudaCode lm_head_train(const LmHeadTrainParams& p, CudaErrorText* error);
size_t lm_head_backward_workspace_bytes(int64_t rows, int64_t v, int64_t d, bool rows_given);
size_t lm_head_train_workspace_bytes(int64_t b, int64_t v, int64_t d);

// See kernels/device_product.h.
CudaCode device_product(const DeviceProductParams& p, CudaErrorText* error);

// The forward's operators, for the table.
CudaCode linear_forward(const LinearParams& p, CudaErrorText* error);
CudaCode embed_forward(const DeviceEmbedParams& p, CudaErrorText* error);
CudaCode rms_norm_forward(const DeviceRmsNormParams& p, CudaErrorText* error);
CudaCode rotate_forward(const DeviceRotateParams& p, CudaErrorText* error);
CudaCode attention_forward(const DeviceAttentionParams& p, CudaErrorText* error);
CudaCode copy_pages(void* pages, const PageCopy* copies, int64_t count, int64_t page_bytes,
                    int64_t num_layers, int64_t layer_bytes, void* stream, CudaErrorText* error);
CudaCode copy_rows(const void* from, const int32_t* rows, void* to, int64_t count,
                   int64_t row_bytes, void* stream, CudaErrorText* error);
CudaCode start_slots(const SlotState& state, const SlotStart* starts, int64_t count,
                     const int32_t* tokens_from, int32_t* tables, const int32_t* new_tables,
                     int64_t table_stride, void* stream, CudaErrorText* error);
CudaCode advance_slots(const SlotState& state, const int32_t* sampled, int64_t count, void* stream,
                       CudaErrorText* error);

// The backward's, likewise.
CudaCode rms_norm_backward(const DeviceRmsNormBackwardParams& p, CudaErrorText* error);
CudaCode column_sums(const DeviceColumnSumsParams& p, CudaErrorText* error);
CudaCode swiglu_backward(const DeviceSwigluBackwardParams& p, CudaErrorText* error);
CudaCode rotate_rows(const DeviceRotateRowsParams& p, CudaErrorText* error);
CudaCode rotate_backward(const DeviceRotateBackwardParams& p, CudaErrorText* error);
CudaCode embed_backward(const DeviceEmbedBackwardParams& p, CudaErrorText* error);
CudaCode round_rows(const float* x, void* y, int64_t count, void* stream, CudaErrorText* error);
CudaCode adamw(const DeviceAdamWParams& p, CudaErrorText* error);
CudaCode hash_numbers(const DeviceHashParams& p, CudaErrorText* error);
CudaCode sum_of_squares(const DeviceSumOfSquaresParams& p, CudaErrorText* error);
CudaCode attention_backward(const DeviceAttentionBackwardParams& p, CudaErrorText* error);

}  // namespace gradus::kernels::cuda

#define GRADUS_CUDA_CALL(call)                                                          \
  do {                                                                                  \
    const cudaError_t gradus_status_ = (call);                                          \
    if (gradus_status_ != cudaSuccess) return cuda_error(gradus_status_, #call, error); \
  } while (false)

#define GRADUS_CUDA_RETURN(call)                            \
  do {                                                      \
    const CudaCode gradus_code_ = (call);                   \
    if (gradus_code_ != CudaCode::kOk) return gradus_code_; \
  } while (false)
