// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// Exact nearest rows: for each query the rows with the largest inner products, found while the
// scores are made, block by block; no M x N array is stored. A score is one chain of fused
// multiply-adds over increasing k, as in gemm.h, so it is the same bits in whatever batch, block,
// thread or instruction set, and equals gemm_forward's; and the order (score descending, then id
// ascending) has no ties, so neither has the list.
//
// Letters: M queries, N rows, K width, T list length. No shared state; parallel over the pool of
// common/parallel.h.
struct NearestParams {
  const float* queries_MK = nullptr;   // finite, rows queries_stride apart
  int64_t queries_stride = 0;          // >= K
  const float* rows_packed = nullptr;  // packed_size(N, K) as pack_weight makes it, finite
  const int64_t* ids_N = nullptr;      // distinct; null: row numbers
  int64_t m = 0, n = 0, k = 0;
  int64_t top = 0;             // T >= 1
  float* scores_MT = nullptr;  // out, descending; -inf beyond N
  int64_t* ids_MT = nullptr;   // out; -1 beyond N
};
void nearest_rows(const NearestParams& params);

}  // namespace gradus::kernels
