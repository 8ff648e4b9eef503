// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "common/aligned_buffer.h"
#include "kernels/attention.h"
#include "model/model_config.h"

namespace gradus::model {

// Keys and values of all layers in pages of 64 positions (PagedAttention, Kwon et al. 2023,
// arXiv:2309.06180). A page may be shared by sequences with the same prefix: it is counted, and
// copied before one of them writes into it. Not thread-safe.
class KvCache {
 public:
  // num_pages >= 1. Memory is taken as pages are written.
  KvCache(const ModelConfig& config, int64_t num_pages);

  static int64_t bytes_per_page(const ModelConfig& config);

  int64_t num_pages() const { return num_pages_; }
  int64_t num_free_pages() const { return static_cast<int64_t>(free_pages_.size()); }
  const kernels::KvPageLayout& layout() const { return layout_; }
  float* layer(int64_t layer_index) { return store_.data() + layer_index * layer_size_; }

  // A page with count 1, the lowest free number first; there must be one.
  int32_t take_page();
  void share_page(int32_t page);    // count + 1
  void release_page(int32_t page);  // count - 1; free at 0
  bool is_shared(int32_t page) const { return counts_[static_cast<size_t>(page)] > 1; }
  // Copies all layers of `from` into `to`.
  void copy_page(int32_t from, int32_t to);
  // Frees every page.
  void clear();

 private:
  kernels::KvPageLayout layout_;
  int64_t num_layers_, num_pages_, layer_size_;
  AlignedBuffer store_;
  std::vector<int32_t> counts_;
  std::vector<int32_t> free_pages_;  // a heap: the lowest number on top
};

}  // namespace gradus::model
