// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/rng.h"
#include "model/kv_cache.h"
#include "model/transformer.h"

namespace gradus::testing {

inline const std::vector<std::string>& tiny_models() {
  static const std::vector<std::string> names = {"llama3_rope", "llama_linear_rope", "qwen2",
                                                 "qwen3"};
  return names;
}
inline std::string tiny_model_dir(const std::string& name) {
  return "tests/golden/tiny_models/" + name;
}

inline std::unique_ptr<model::Transformer> tiny_model(const std::string& name) {
  auto loaded = model::Transformer::load(tiny_model_dir(name));
  GRADUS_CHECK(loaded.ok(), loaded.status().message());
  return std::move(*loaded);
}

inline std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  RngSequence rng(seed, RngStream::kTask);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<int32_t>(rng.between(0, vocab_size - 1)));
  return tokens;
}

// Hidden rows of `tokens` from position `first` on, through the pages `table` (room for all
// positions).
inline std::vector<float> hidden_rows(model::Transformer& transformer, model::KvCache& cache,
                                      const std::vector<int32_t>& table,
                                      const std::vector<int32_t>& tokens, int64_t first) {
  std::vector<int32_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(first));
  const std::vector<kernels::AttentionRun> runs = {
      {0, static_cast<int64_t>(tokens.size()), first, table.data()}};
  std::vector<float> hidden(tokens.size() * static_cast<size_t>(transformer.config().hidden_size));
  transformer.forward({tokens, positions, runs, {}}, cache, hidden.data());
  return hidden;
}

}  // namespace gradus::testing
