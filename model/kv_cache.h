// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/aligned_buffer.h"
#include "kernels/attention.h"
#include "model/model_config.h"
#include "model/page_pool.h"

namespace gradus::model {

// Keys and values of all layers in pages of 64 positions (PagedAttention, Kwon et al. 2023,
// arXiv:2309.06180). A page may be shared by sequences with the same prefix: it is counted, and
// copied before one of them writes into it. Not thread-safe.
class KvCache {
 public:
  // num_pages >= 1. Memory is taken as pages are written.
  KvCache(const ModelConfig& config, int64_t num_pages);

  static int64_t bytes_per_page(const ModelConfig& config);

  int64_t num_pages() const { return pool_.num_pages(); }
  int64_t num_free_pages() const { return pool_.num_free(); }
  const kernels::KvPageLayout& layout() const { return layout_; }
  float* layer(int64_t layer_index) { return store_.data() + layer_index * layer_size_; }

  int32_t take_page() { return pool_.take(); }
  void share_page(int32_t page) { pool_.share(page); }
  void release_page(int32_t page) { pool_.release(page); }
  bool is_shared(int32_t page) const { return pool_.is_shared(page); }
  // Copies all layers of `from` into `to`.
  void copy_page(int32_t from, int32_t to);
  void clear() { pool_.clear(); }

 private:
  kernels::KvPageLayout layout_;
  PagePool pool_;
  int64_t num_layers_, layer_size_;
  AlignedBuffer store_;
};

}  // namespace gradus::model
