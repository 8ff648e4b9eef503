// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "data/packing.h"
#include "model/training_pass.h"
#include "tests/support/model_rows.h"

namespace gradus::testing {

// Groups of three responses, and what the loss sends back to each of their tokens.
struct TrainingBatch {
  std::vector<data::PackGroup> groups;
  std::vector<float> dlogprobs, dentropies;
};

inline TrainingBatch random_batch(int64_t vocab_size) {
  TrainingBatch batch;
  for (uint64_t g = 0; g < 6; ++g) {
    data::PackGroup group;
    group.prompt = random_tokens(static_cast<int64_t>(3 + 40 * g), vocab_size, 100 + g);
    for (uint64_t i = 0; i < 3; ++i) {
      group.responses.push_back(
          random_tokens(static_cast<int64_t>(1 + 7 * i + g), vocab_size, 10 * g + i));
      for (size_t t = 0; t < group.responses.back().size(); ++t) {
        batch.dlogprobs.push_back(0.1f * static_cast<float>((batch.dlogprobs.size() * 7) % 11) -
                                  0.5f);
        batch.dentropies.push_back(t % 2 == 0 ? 0.0f : 0.01f);
      }
    }
    batch.groups.push_back(std::move(group));
  }
  return batch;
}

// One gradient over micro-batches of at most `max_rows` rows; returns the log-probs.
inline std::vector<float> accumulate_gradient(model::Transformer& transformer,
                                              const TrainingBatch& batch, int64_t max_rows,
                                              bool checkpointing, model::Gradients& gradients) {
  std::vector<int64_t> rows;
  for (const data::PackGroup& group : batch.groups) rows.push_back(data::num_pack_rows(group));
  const std::vector<int64_t> cuts = data::cut_micro_batches(rows, max_rows);
  model::TrainingPass pass(transformer, checkpointing);
  gradients.clear();
  std::vector<float> logprobs;
  size_t first_target = 0;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const data::Pack pack = data::make_pack(
        std::span(batch.groups)
            .subspan(static_cast<size_t>(cuts[i]), static_cast<size_t>(cuts[i + 1] - cuts[i])));
    pass.forward(pack, 1.0f, true);
    pass.backward(std::span(batch.dlogprobs).subspan(first_target, pack.targets.size()),
                  std::span(batch.dentropies).subspan(first_target, pack.targets.size()),
                  gradients);
    first_target += pack.targets.size();
    logprobs.insert(logprobs.end(), pass.logprobs().begin(), pass.logprobs().end());
  }
  gradients.finish(transformer.layout(), transformer.config().hidden_size);
  return logprobs;
}

}  // namespace gradus::testing
