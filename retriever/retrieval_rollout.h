// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "retriever/embedder.h"
#include "retriever/index_folder.h"
#include "retriever/query_trainer.h"
#include "retriever/scripted_reader.h"

namespace gradus::retriever {

// The state of the retrieval policy (HARR, arXiv:2602.03645, section 3.1) as tokens of the encoder:
//
//   [CLS] query | answers so far, newest first | question [SEP]
//
// or the query alone. What is too long is cut so that no part goes: of the encoder's length the
// query has three eighths, the question a quarter, and of the answers the oldest are left out.
// (Cutting on the right, as the paper's code does, takes the query off first: it puts it last.)
// InvalidArgument if a text is not valid UTF-8.
Result<std::vector<int32_t>> state_tokens(const Embedder& embedder, const std::string& query,
                                          std::span<const SearchTurn> turns,
                                          const std::string& question, bool with_history);

struct RetrievalOptions {
  bool with_history = true;
  int64_t pool_size = 30;     // K: documents that a list is drawn from
  int64_t list_length = 3;    // k
  double temperature = 0.05;  // a
  bool greedy = false;        // the k best instead of a draw
};

// A question answered by searches.
struct RetrievalTrajectory {
  std::vector<SearchTurn> turns;
  std::vector<RetrievalStep> steps;  // one a turn; advantage, weight and block are not set
  std::string answer;
};

// `num_samples` trajectories of each question, those of question q at [q * num_samples, ...).
// seeds_R[i] is the seed of trajectory i: its draws depend on it, its states and the documents
// alone. Searches of a turn go to the encoder and the index together, equal states once. Scores are
// exact, so the recorded log-probability is what the same encoder makes of the recorded pool, bit
// for bit. `progress` is told how many searches are done.
Result<std::vector<RetrievalTrajectory>> sample_retrievals(
    Embedder& embedder, const IndexFolder& index, const ScriptedReader& reader,
    std::span<const SearchQuestion* const> questions, int64_t num_samples,
    std::span<const uint64_t> seeds_R, const RetrievalOptions& options,
    const std::function<void(int64_t)>& progress = {});

}  // namespace gradus::retriever
