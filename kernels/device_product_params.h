// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/stream.h"

namespace gradus::kernels {

// Parameters of kernels/device_product.h, as plain data: what the binary hands to
// libgradus_cuda.so. All pointers are to device memory, 16-byte aligned.

// C = op(A) op(B), or C += op(A) op(B): row-major, bf16 in, sums in fp32. A stride is the number of
// elements from row to row, a multiple of 8; 0 = the width of a row.
struct DeviceProductParams {
  const void* a = nullptr;      // bf16 [M, K], or [K, M] with a_transposed
  const void* b = nullptr;      // bf16 [K, N], or [N, K] with b_transposed
  void* c = nullptr;            // fp32 or bf16 [M, N]
  int64_t m = 0, n = 0, k = 0;  // each in [1, 2^31)
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  bool a_transposed = false;
  bool b_transposed = false;
  bool c_bf16 = false;      // C is bf16, rounded once to nearest even; else fp32
  bool accumulate = false;  // adds to what is in C, which must be fp32
  Stream stream = nullptr;
};

}  // namespace gradus::kernels
