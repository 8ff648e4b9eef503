// SPDX-License-Identifier: Apache-2.0
#include "rollout/engine.h"

#include <algorithm>

#include "common/rng.h"
#include "model/kv_cache.h"

namespace gradus::rollout {

int64_t num_cache_pages(const model::ModelConfig& config, int64_t bytes) {
  return std::max<int64_t>(1, bytes / model::KvCache::bytes_per_page(config));
}

int64_t num_request_pages(const model::ModelConfig& config, int64_t prompt_tokens,
                          int64_t max_new_tokens) {
  const int64_t longest =
      std::min(prompt_tokens + max_new_tokens, config.max_position_embeddings) - 1;
  return (longest + kernels::kPageTokens - 1) / kernels::kPageTokens +
         (prompt_tokens % kernels::kPageTokens != 0 ? 1 : 0);
}

int64_t cache_mib_for(const model::ModelConfig& config, int64_t num_pages) {
  return (num_pages * model::KvCache::bytes_per_page(config) + (1 << 20) - 1) >> 20;
}

uint64_t request_seed(uint64_t run_seed, uint64_t pass, uint64_t prompt_id, int32_t sample_index) {
  return hash64({run_seed, pass, prompt_id, static_cast<uint64_t>(sample_index)});
}

}  // namespace gradus::rollout
