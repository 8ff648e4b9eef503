// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/gguf.h"

namespace gradus::model {

// A format stores `values` consecutive numbers of a row in a block of `bytes`.
struct GgmlBlock {
  int64_t values = 0;
  int64_t bytes = 0;
};
GgmlBlock ggml_block(GgmlType type);

// Floats of `num_blocks` blocks to `out` [num_blocks * values]. Each product and sum is rounded to
// float on its own, in the order of the reference (gguf.quants). Serial; `in` need not be aligned.
void dequantize(GgmlType type, const std::byte* in, int64_t num_blocks, float* out);

}  // namespace gradus::model
