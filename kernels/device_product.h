// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/status.h"
#include "kernels/cuda.h"
#include "kernels/device_product_params.h"

namespace gradus::kernels {

// Matrix products of the backward, by the machine's cuBLAS (libcublas.so.13, looked for at the
// first call): dX = dY W and dW += dY^T X. The forward's products are device_linear's, whose bits
// do not depend on the number of rows; here a sum may be cut, but where is fixed by shapes,
// strides, the card and cuBLAS' version: the same call gives the same bits again.
//
// Enqueues on `stream`. The first call on a device allocates 32 MiB for cuBLAS to work in and may
// synchronise, so it must not be recorded into a graph; later ones do neither. Safe to call from
// several threads; calls on different streams must not overlap, since they share that memory.
//
// InvalidArgument names the first parameter outside its range; Unavailable says that cuBLAS is
// missing and how to get it, or names a CUDA error with operation and shapes.
Status device_product(const Cuda& cuda, const DeviceProductParams& params);

}  // namespace gradus::kernels
