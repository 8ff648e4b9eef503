// SPDX-License-Identifier: Apache-2.0
#include "retriever/rescore.h"

#include <algorithm>

#include "common/check.h"

namespace gradus::retriever {
namespace {

// Rows whose chains go side by side: a chain waits four cycles for each step, and two multiply-adds
// start in every cycle.
constexpr int64_t kRows = 8;

}  // namespace

void score_pool(const float* query_D, const float* vectors_ND, int64_t width,
                std::span<const int64_t> places_K, std::span<float> scores_K) {
  GRADUS_CHECK(places_K.size() == scores_K.size(), "score_pool: one score per document");
  const int64_t count = static_cast<int64_t>(places_K.size());
  // The rows lie anywhere: ask for those that come next while these are summed.
  const auto fetch = [&](int64_t begin) {
    for (int64_t j = begin; j < std::min(count, begin + kRows); ++j) {
      const float* row = vectors_ND + places_K[j] * width;
      for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(row + i);
    }
  };
  fetch(0);
  for (int64_t begin = 0; begin < count; begin += kRows) {
    fetch(begin + kRows);
    const float* rows[kRows];
    for (int64_t j = 0; j < kRows; ++j) {
      rows[j] = vectors_ND + places_K[std::min(begin + j, count - 1)] * width;
    }
    float sums[kRows] = {};
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < kRows; ++j) {
        sums[j] = __builtin_fmaf(query_D[i], rows[j][i], sums[j]);
      }
    }
    for (int64_t j = begin; j < std::min(count, begin + kRows); ++j) scores_K[j] = sums[j - begin];
  }
}

}  // namespace gradus::retriever
