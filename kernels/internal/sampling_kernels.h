// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// Last word of the Philox counter; the extra 32 bits of a refined draw use the next number.
inline constexpr uint32_t kSamplingVersion = 1;
// Draws below this get 32 more bits: below it, one step of r moves the noise by more than 2^-10.
inline constexpr uint32_t kRefineBelow = 1u << 10;

struct LogitScan {
  float max = 0;
  int64_t argmax = 0;  // lowest id
  bool has_nan = false;
};

// Walks over a row and reports the tokens whose score may reach `threshold`: with r the token's
// draw, an upper bound of x + g that needs no logarithm is compared. `offer` computes the exact
// score and returns the threshold from there on. Which tokens are reported beyond the necessary
// ones may differ between instruction sets; what wins may not.
struct NoiseScan {
  const float* logits_V = nullptr;
  int64_t v = 0;
  int64_t first_id = 0;  // of logits_V[0], a multiple of 128; offers count from it
  float inverse_temperature = 1;
  float lowest_logit = 0;  // logits below it are not reported
  uint64_t seed = 0;
  uint32_t position = 0;
  float threshold = 0;
  float (*offer)(void* state, int64_t id, uint32_t draw) = nullptr;
  void* state = nullptr;
};

struct SamplingKernels {
  LogitScan (*scan)(const float* logits_V, int64_t v);
  void (*scan_noise)(const NoiseScan& scan);
  // Largest logit of each of ceil(v / chunk) * 16 groups: lane j of every 16 in a chunk; chunk is a
  // multiple of 16. Groups without a logit give -inf.
  void (*group_maxima)(const float* logits_V, int64_t v, int64_t chunk, float* maxima);
  // Ids of logits >= lowest, ascending; returns their number.
  int64_t (*collect)(const float* logits_V, int64_t v, float lowest, int32_t* ids);
  // x[i] = z[ids[i]] / T and e[i] = exp(x[i] - max).
  void (*weigh)(const float* logits_V, const int32_t* ids, int64_t count, float temperature,
                float max, float* x, float* e);
};

namespace avx2 {
const SamplingKernels& sampling_kernels();
}
namespace avx512 {
const SamplingKernels& sampling_kernels();
}

}  // namespace gradus::kernels
