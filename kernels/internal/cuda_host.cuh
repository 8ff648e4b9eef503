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

// Streaming multiprocessors of the current device.
int num_processors();

LmHeadFunctions lm_head_functions();
CheckFunctions check_functions();

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
