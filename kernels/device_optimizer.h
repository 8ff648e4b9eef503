// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/status.h"
#include "kernels/cuda.h"
#include "kernels/device_optimizer_params.h"

namespace gradus::kernels {

// kernels/optimizer.h on the GPU. Functions enqueue on a stream; they neither allocate nor
// synchronise.

// Bit for bit what adamw() makes of the same numbers: elementwise, one rounding per operation.
Status device_adamw(const Cuda& cuda, const DeviceAdamWParams& params);

// Sum of squares in double, in parts fixed by `count` that meet in order: it repeats bit for bit.
// NaN and infinity come through.
Status device_sum_of_squares(const Cuda& cuda, const DeviceSumOfSquaresParams& params);

}  // namespace gradus::kernels
