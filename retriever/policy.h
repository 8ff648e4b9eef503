// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/status.h"

namespace gradus::retriever {

// The retrieval policy of HARR (arXiv:2602.03645, section 3.2): an ordered list of k documents
// drawn without replacement from a pool of K scored ones (Plackett-Luce). With logits l_j = s_j / a
// for scores s (inner products of query and documents) and temperature a,
//
//   log pi(d^1 .. d^k) = sum_i (l_{d^i} - L_i),   L_i = log sum exp(l) over the pool without
//                                                 d^1 .. d^{i-1}
//   d log pi / d l_j   = sum_i (1{j = d^i} - 1{j not among d^{<i}} exp(l_j - L_i))
//
// Drawn by Gumbel top-k with the noise of kernels/sampling.h, a function of (seed, hop, document
// id): neither the order of the pool nor ranks nor batches change a draw. All in double; the
// log-sum-exps are built from the documents that were not chosen, adding the chosen ones back from
// last to first, so that nothing cancels when one document holds nearly all mass.
//
// Letters: K documents in the pool, k in the list. No state: all functions are thread-safe.

// A ranked list: places in the pool, best first, without repeats.
struct Ranking {
  std::vector<int32_t> places;
  double logprob = 0;  // of this list in this order
};

struct DrawParams {
  std::span<const double> scores_K;  // finite
  std::span<const int64_t> ids_K;    // of the documents, distinct, in [0, 2^32)
  double temperature = 0.05;         // a, > 0
  int64_t k = 3;                     // >= 1; a smaller pool is taken whole
  bool greedy = false;  // the k best scores (ties: lowest id); seed and hop are not used
  uint64_t seed = 0;    // of the trajectory
  uint32_t hop = 0;     // retrieval step within it
};
// InvalidArgument names what is outside its range. An empty pool gives an empty list of
// log-probability 0.
Result<Ranking> draw_ranking(const DrawParams& params);

// log pi of the list `places` and, where dscores_K is not empty, its derivative by the scores
// (d log pi / d l_j divided by a). InvalidArgument if a score is not finite, the temperature not
// positive, or a place outside the pool or listed twice.
Result<double> ranking_logprob(std::span<const double> scores_K, double temperature,
                               std::span<const int32_t> places, std::span<double> dscores_K = {});

// exp of the entropy of the first draw: between how many documents the policy really chooses.
double effective_documents(std::span<const double> scores_K, double temperature);

// The key of gumbel_noise for a trajectory's retrieval, so that tokens of the same seed share no
// numbers with it.
uint64_t retrieval_noise_seed(uint64_t seed);

}  // namespace gradus::retriever
