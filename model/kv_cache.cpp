// SPDX-License-Identifier: Apache-2.0
#include "model/kv_cache.h"

#include <cstring>

namespace gradus::model {

KvCache::KvCache(const ModelConfig& config, int64_t num_pages)
    : layout_{config.num_kv_heads, config.head_dim},
      pool_(num_pages),
      num_layers_(config.num_layers),
      layer_size_(num_pages * layout_.page_size()),
      store_(num_layers_ * layer_size_) {}

int64_t KvCache::bytes_per_page(const ModelConfig& config) {
  const kernels::KvPageLayout layout{config.num_kv_heads, config.head_dim};
  return config.num_layers * layout.page_size() * static_cast<int64_t>(sizeof(float));
}

void KvCache::copy_page(int32_t from, int32_t to) {
  const int64_t size = layout_.page_size();
  for (int64_t i = 0; i < num_layers_; ++i) {
    std::memcpy(layer(i) + to * size, layer(i) + from * size,
                static_cast<size_t>(size) * sizeof(float));
  }
}

}  // namespace gradus::model
