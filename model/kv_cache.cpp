// SPDX-License-Identifier: Apache-2.0
#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

#include "common/check.h"

namespace gradus::model {

KvCache::KvCache(const ModelConfig& config, int64_t num_pages)
    : layout_{config.num_kv_heads, config.head_dim},
      num_layers_(config.num_layers),
      num_pages_(num_pages),
      layer_size_(num_pages * layout_.page_size()),
      store_(num_layers_ * layer_size_) {
  GRADUS_CHECK(num_pages >= 1, "KvCache needs at least one page");
  clear();
}

int64_t KvCache::bytes_per_page(const ModelConfig& config) {
  const kernels::KvPageLayout layout{config.num_kv_heads, config.head_dim};
  return config.num_layers * layout.page_size() * static_cast<int64_t>(sizeof(float));
}

int32_t KvCache::take_page() {
  GRADUS_CHECK(!free_pages_.empty(), "no free page");
  std::pop_heap(free_pages_.begin(), free_pages_.end(), std::greater<>());
  const int32_t page = free_pages_.back();
  free_pages_.pop_back();
  counts_[static_cast<size_t>(page)] = 1;
  return page;
}

void KvCache::share_page(int32_t page) {
  GRADUS_CHECK(counts_[static_cast<size_t>(page)] > 0, "sharing a free page");
  ++counts_[static_cast<size_t>(page)];
}

void KvCache::release_page(int32_t page) {
  int32_t& count = counts_[static_cast<size_t>(page)];
  GRADUS_CHECK(count > 0, "releasing a free page");
  if (--count == 0) {
    free_pages_.push_back(page);
    std::push_heap(free_pages_.begin(), free_pages_.end(), std::greater<>());
  }
}

void KvCache::copy_page(int32_t from, int32_t to) {
  const int64_t size = layout_.page_size();
  for (int64_t i = 0; i < num_layers_; ++i) {
    std::memcpy(layer(i) + to * size, layer(i) + from * size,
                static_cast<size_t>(size) * sizeof(float));
  }
}

void KvCache::clear() {
  counts_.assign(static_cast<size_t>(num_pages_), 0);
  free_pages_.resize(static_cast<size_t>(num_pages_));
  std::iota(free_pages_.begin(), free_pages_.end(), 0);  // ascending: already a heap
}

}  // namespace gradus::model
