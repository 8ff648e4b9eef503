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

// Hash of the bits: the sum, modulo 2^64, of a mix of each number with its place. A changed bit, or
// two numbers that changed places, change it; the order of the sum does not, so the hash of an
// array is the sum over its pieces, each from its first place on.
Status device_hash(const Cuda& cuda, const DeviceHashParams& params);

}  // namespace gradus::kernels
