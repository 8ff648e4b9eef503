// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda_check.h"

#include "kernels/internal/cuda_call.h"
#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {

Status check_logits(const Cuda& cuda, const void* w_VD, const void* h_BD, float* logits_BV,
                    int64_t b, int64_t v, int64_t d, int32_t parts) {
  return cuda_call("check_logits", cuda.table().check.logits, w_VD, h_BD, logits_BV, b, v, d, parts,
                   nullptr);
}

Status check_cublas_logits(const Cuda& cuda, const void* w_VD, const void* h_BD, void* logits_BV,
                           int64_t b, int64_t v, int64_t d) {
  return cuda_call("check_cublas_logits", cuda.table().check.cublas_logits, w_VD, h_BD, logits_BV,
                   b, v, d, nullptr);
}

Status check_random_bf16(const Cuda& cuda, void* p, int64_t count, float scale, uint64_t seed) {
  return cuda_call("check_random_bf16", cuda.table().check.random_bf16, p, count, scale, seed,
                   nullptr);
}

Status check_read(const Cuda& cuda, const void* p, size_t bytes, float* sum) {
  return cuda_call("check_read", cuda.table().check.read, p, bytes, sum, nullptr);
}

}  // namespace gradus::kernels
