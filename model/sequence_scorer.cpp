// SPDX-License-Identifier: Apache-2.0
#include "model/sequence_scorer.h"

namespace gradus::model {

int64_t scored_target(std::span<const int32_t> response, std::optional<int32_t> pad_id) {
  int64_t index = static_cast<int64_t>(response.size());
  while (index > 0 && response[static_cast<size_t>(index - 1)] == pad_id) --index;
  return index;
}

SequenceScorer::SequenceScorer(Transformer& transformer)
    : transformer_(transformer), pass_(transformer, false) {}

Status SequenceScorer::check(std::span<const int32_t> ids) const {
  const ModelConfig& config = transformer_.config();
  if (static_cast<int64_t>(ids.size()) > config.max_position_embeddings) {
    return invalid_argument("the row has {} tokens, the model's context {}; shorten it", ids.size(),
                            config.max_position_embeddings);
  }
  if (scored_target(ids, config.pad_id) == 0) {
    return invalid_argument("all {} tokens of the row are padding (id {}); there is none to score",
                            ids.size(), config.pad_id.value_or(-1));
  }
  return {};
}

std::vector<float> SequenceScorer::score(std::span<const std::vector<int32_t>> sequences) {
  std::vector<float> scores;
  std::vector<data::PackGroup> pack;
  int64_t num_tokens = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int64_t length = scored_target(sequences[i], transformer_.config().pad_id);
    // What stands behind the scored token means nothing to a score head.
    pack.push_back({{sequences[i].begin(), sequences[i].begin() + length}, {{0}}});
    num_tokens += length;
    if (num_tokens < kPackTokens && i + 1 < sequences.size()) continue;
    pass_.forward(data::make_pack(pack), 1.0f, false);
    scores.insert(scores.end(), pass_.logprobs().begin(), pass_.logprobs().end());
    pack.clear();
    num_tokens = 0;
  }
  return scores;
}

}  // namespace gradus::model
