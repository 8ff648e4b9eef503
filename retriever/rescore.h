// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

namespace gradus::retriever {

// Exact scores of a pool of documents: scores_K[j] = query . row places_K[j] of vectors_ND, as one
// chain of fused multiply-adds each, bit for bit what the index kind `flat` gives. For pools of
// approximate indexes, whose own scores must not enter a log-probability, and for recorded pools.
// Runs in the calling thread.
void score_pool(const float* query_D, const float* vectors_ND, int64_t width,
                std::span<const int64_t> places_K, std::span<float> scores_K);

}  // namespace gradus::retriever
