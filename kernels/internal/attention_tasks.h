// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/attention.h"

// The units of work that attention.cpp shares out over threads, for each instruction set. Page
// sizes are passed as numbers: an ISA file calls no inline function of a shared header
// (kernels/isa.h).
namespace gradus::kernels {

struct PageNumbers {
  int64_t padded_width = 0, keys_size = 0, page_size = 0;
};

// Query rows that one tile of the forward handles: kTileQueries / (H / G) rows, at least one.
inline constexpr int kTileQueries = 6;

namespace avx2 {
// Rows [row_first, row_last) of the run (counted from its first), key-value head g.
void attention_forward_tile(const AttentionForwardParams& params, const PageNumbers& numbers,
                            const AttentionRun& run, int64_t g, int64_t row_first,
                            int64_t row_last);
void attention_backward_group(const AttentionBackwardParams& params, const PageNumbers& numbers,
                              int64_t group, int64_t g);
}  // namespace avx2
namespace avx512 {
void attention_forward_tile(const AttentionForwardParams& params, const PageNumbers& numbers,
                            const AttentionRun& run, int64_t g, int64_t row_first,
                            int64_t row_last);
void attention_backward_group(const AttentionBackwardParams& params, const PageNumbers& numbers,
                              int64_t group, int64_t g);
}  // namespace avx512

}  // namespace gradus::kernels
