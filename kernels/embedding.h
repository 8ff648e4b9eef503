// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// Rows of an embedding table kept in the panels of kernels/gemm.h (so that a tied table serves as
// the head's weight without a copy). Letters: T tokens, V vocabulary, D width. No shared state;
// parallel.

// out[t] = table[token_ids[t]]; ids in [0, V), checked by the caller.
void embedding_gather(const float* table_packed, const int32_t* token_ids_T, int64_t t, int64_t d,
                      float* out_TD, int64_t out_stride);

// dtable[token_ids[t]] += dx[t], tokens in order.
void embedding_scatter_add(float* dtable_packed, const int32_t* token_ids_T, const float* dx_TD,
                           int64_t dx_stride, int64_t t, int64_t d);

}  // namespace gradus::kernels
