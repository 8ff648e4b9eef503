// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/sampling.h"

namespace gradus::kernels {

// The oracle of sampling.h in double precision, as plain loops over the sorted vocabulary.
struct SampleRef {
  int32_t token = 0;
  double logprob = 0;
  double sampling_logprob = 0;
  std::vector<int32_t> kept;  // in the order (x descending, id ascending)
  double score_gap = 0;       // between the winner and the next; infinite if it is alone
  double filter_gap = 0;      // how far the nearest filter decision was from going the other way
};
SampleRef sample_token_ref(const SamplingParams& params);

// g of one token.
double gumbel_ref(uint64_t seed, uint32_t position, int64_t id);

}  // namespace gradus::kernels
