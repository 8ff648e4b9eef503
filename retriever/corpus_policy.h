// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/status.h"
#include "retriever/policy.h"

namespace gradus::retriever {

// The policy of retriever/policy.h with the whole corpus as its pool: nothing is truncated, so the
// gradient is exact for the full Plackett-Luce law. Scores are made block by block and never
// stored: the log-sum-exp runs over the blocks, and the gradient by the query,
//
//   d log pi / d q = (1/a) sum_i (e_{d^i} - sum_{j not among d^{<i}} p_i(j) e_j),
//
// is attention with the documents as keys and values (one pass for the sums, one for the
// gradient). A query's results are functions of that query and the documents alone, bit for bit:
// not of the other queries, threads or instruction set.
//
// Letters: S states (queries), N documents, D width, k list length. Cost: draws 2 S N D operations,
// log-probs 2 S N D, with gradient 6 S N D; memory of order S D beyond the operands.
struct CorpusQueries {
  const float* documents = nullptr;   // [N, D] in panels (kernels/gemm.h: pack_weight), finite
  int64_t num_documents = 0;          // N, < 2^32
  int64_t width = 0;                  // D
  const float* queries_SD = nullptr;  // finite
  int64_t num_queries = 0;            // S
  double temperature = 0.05;          // a, > 0
};

// What a state's draw is keyed by: see DrawParams.
struct DrawKey {
  uint64_t seed = 0;
  uint32_t hop = 0;
};

// One list per state; places are document numbers. The lists equal draw_ranking's from a pool of
// all documents with ids 0 .. N - 1. InvalidArgument names what is outside its range.
Result<std::vector<Ranking>> draw_from_corpus(const CorpusQueries& queries,
                                              std::span<const DrawKey> keys_S, int64_t k);

// logprobs_S[s] of the lists places_Sk (k each) and, unless null, dqueries_SD: the derivative of
// each by its query.
Status corpus_logprobs(const CorpusQueries& queries, std::span<const int32_t> places_Sk, int64_t k,
                       std::span<double> logprobs_S, float* dqueries_SD);

}  // namespace gradus::retriever
