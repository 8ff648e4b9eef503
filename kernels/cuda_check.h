// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/status.h"
#include "kernels/cuda.h"

namespace gradus::kernels {

// Plain kernels that the fast ones are compared with, and rulers for the machine. Enqueued on the
// default stream; bf16 matrices are row-major.

// logits_BV [B, V] fp32 = h w^T, by mma.sync with one chain over k for each, one warp a tile of 16
// x 8: shares no code with what is compared with it. `parts` > 1 cuts k and adds the parts' sums,
// which the row contract forbids.
Status check_logits(const Cuda& cuda, const void* w_VD, const void* h_BD, float* logits_BV,
                    int64_t b, int64_t v, int64_t d, int32_t parts = 1);
// The peer: the same product in bf16 by the cuBLAS of the machine. Unavailable if it has none.
Status check_cublas_logits(const Cuda& cuda, const void* w_VD, const void* h_BD, void* logits_BV,
                           int64_t b, int64_t v, int64_t d);
// `count` normal bf16 numbers of this deviation.
Status check_random_bf16(const Cuda& cuda, void* p, int64_t count, float scale, uint64_t seed);
// Reads all of p once: the memory's read rate.
Status check_read(const Cuda& cuda, const void* p, size_t bytes, float* sum);

}  // namespace gradus::kernels
