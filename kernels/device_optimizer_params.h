// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/stream.h"

namespace gradus::kernels {

// Parameters of kernels/device_optimizer.h, as plain data: what the binary hands to
// libgradus_cuda.so. All pointers are to device memory.

// AdamWParams of kernels/optimizer.h, with the copy of the weights that products read.
struct DeviceAdamWParams {
  float* weights = nullptr;
  const float* gradients = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  int64_t count = 0;
  float gradient_scale = 1;
  float learning_rate = 0;
  float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;
  float weight_decay = 0;
  float correction1 = 1, correction2 = 1;
  void* weights_bf16 = nullptr;  // written, rounded to nearest even; or null
  float* weights_f32 = nullptr;  // written; or null
  Stream stream = nullptr;
};

struct DeviceSumOfSquaresParams {
  const float* values = nullptr;
  int64_t count = 0;
  double* sums = nullptr;  // [kSquaresParts + 1]; the last is the result
  Stream stream = nullptr;
};

struct DeviceHashParams {
  const void* values = nullptr;  // 32-bit numbers
  int64_t count = 0;
  int64_t first = 0;         // place of the first one
  uint64_t* sums = nullptr;  // [kSquaresParts + 1]; the last is the result
  Stream stream = nullptr;
};

inline constexpr int64_t kSquaresParts = 1024;
inline constexpr size_t device_sum_of_squares_bytes() {
  return (kSquaresParts + 1) * sizeof(double);  // as many as of 64-bit numbers
}

}  // namespace gradus::kernels
