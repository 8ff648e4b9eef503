// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_optimizer.h"

#include "kernels/internal/cuda_call.h"
#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {

Status device_adamw(const Cuda& cuda, const DeviceAdamWParams& params) {
  if (params.count == 0) return {};
  return cuda_call(fmt::format("device_adamw of {} weights", params.count),
                   cuda.table().optimizer.adamw, params);
}

Status device_sum_of_squares(const Cuda& cuda, const DeviceSumOfSquaresParams& params) {
  return cuda_call(fmt::format("device_sum_of_squares of {} numbers", params.count),
                   cuda.table().optimizer.sum_of_squares, params);
}

Status device_hash(const Cuda& cuda, const DeviceHashParams& params) {
  return cuda_call(fmt::format("device_hash of {} numbers", params.count),
                   cuda.table().optimizer.hash, params);
}

}  // namespace gradus::kernels
