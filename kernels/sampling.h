// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/status.h"

namespace gradus::kernels {

// Exact sampling of one token from one row of logits by the Gumbel-max rule (FlashSampling,
// arXiv:2603.15854, Eq. 1: token = argmax x_i + g_i), with noise that is a function of (seed,
// position, token id) alone: neither the row's place in a batch nor threads nor instruction set can
// change a token.
//
// Noise (differs from the paper, whose noise ends at 16.6): r = one of the four words of
// Philox4x32-10(seed, {id without its bits 3 and 6, position, sample | stream << 24, version}),
// chosen by those two bits; u = (r + 1/2) / 2^32, or 64 bits wide where r < 2^10; g = -ln(-ln(1 -
// u)), where u -> 0 is the tail that wins, so that it is as fine as it is long (g up to 45).
//
// x = z / T in fp32; scores are compared in double. Filters, in this order: top-k, top-p (the token
// that crosses stays), min-p (against the largest probability); each keeps a prefix of the order (x
// descending, id ascending). No global state; scratch memory of the calling thread is used when
// filters are on.
struct SamplingParams {
  const float* logits_V = nullptr;  // [V], each finite or -inf
  int64_t v = 0;                    // in [1, 2^23]
  float temperature = 1;            // T in [1e-4, 1e4]; not used when greedy
  bool greedy = false;    // argmax of z, lowest id on ties; filters and noise are not used
  int64_t top_k = 0;      // >= 0; 0 = off
  double top_p = 1;       // in (0, 1]; 1 = off
  double min_p = 0;       // in [0, 1]; 0 = off
  uint64_t seed = 0;      // of the request
  uint32_t position = 0;  // of the token that is drawn
};

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;  // log softmax(z / T) before the filters; T = 1 when greedy
  // Log of the probability of being drawn: after the filters; 0 when greedy.
  float sampling_logprob = 0;
};

// InvalidArgument names a parameter outside its range; DataLoss if a logit is NaN or +inf, or none
// is finite.
Result<SampledToken> sample_token(const SamplingParams& params);

// g of the noise above for one id in [0, 2^32), of a token or of whatever else a policy chooses
// among.
double gumbel_noise(uint64_t seed, uint32_t position, int64_t id);

// The k largest scores x + g of a long row, in order: a draw without replacement from softmax(x)
// (Gumbel top-k; the first alone is what sample_token draws without filters). A row may be given in
// parts, in any order, with one list: a score is a function of (x, seed, position, id) alone.
struct NoisyScore {
  double score = 0;  // x + g
  int64_t id = 0;
};
struct GumbelTopKParams {
  const float* logits_V = nullptr;  // [V], finite, or -inf: never drawn
  int64_t v = 0;
  int64_t first_id = 0;    // of logits_V[0]; a multiple of 128; first_id + v <= 2^32
  double temperature = 1;  // x = z / T, in double
  uint64_t seed = 0;
  uint32_t position = 0;
  int64_t k = 1;  // >= 1
};
// Merges this part into best_K, of which `count` are filled (score descending, ties by id), and
// returns how many are filled then.
int64_t gumbel_top_k(const GumbelTopKParams& params, NoisyScore* best_K, int64_t count);

}  // namespace gradus::kernels
