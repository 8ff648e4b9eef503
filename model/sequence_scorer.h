// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/status.h"
#include "model/training_pass.h"

namespace gradus::model {

// Index of the target whose row holds the last token of a response that is not `pad_id`: what a
// reward model scores, as transformers' classifiers do. Targets are those of the response with one
// more token behind it; 0 is the prompt's last token.
int64_t scored_target(std::span<const int32_t> response, std::optional<int32_t> pad_id);

// Scores of whole sequences by a reward model: those of their last tokens. A score is a function of
// its sequence and the weights alone, bit for bit. Not thread-safe; the model outlives it.
class SequenceScorer {
 public:
  // A transformer with a score head.
  explicit SequenceScorer(Transformer& transformer);

  // InvalidArgument for a sequence beyond the model's context, or of padding alone.
  Status check(std::span<const int32_t> ids) const;

  // [sequences], each of which passes check(). May be not finite if weights are broken.
  std::vector<float> score(std::span<const std::vector<int32_t>> sequences);

  // Sequences are scored in packs of about so many tokens.
  static constexpr int64_t kPackTokens = 2048;

 private:
  Transformer& transformer_;
  TrainingPass pass_;
};

}  // namespace gradus::model
