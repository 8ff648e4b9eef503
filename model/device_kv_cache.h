// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/status.h"
#include "kernels/cuda.h"
#include "kernels/device_forward.h"
#include "model/model_config.h"
#include "model/page_pool.h"

namespace gradus::model {

// Keys and values of all layers on the GPU, bf16, in pages of 64 positions.
class DeviceKvCache {
 public:
  static int64_t bytes_per_page(const ModelConfig& config);
  // Zeroed. Unavailable when the device lacks the memory.
  static Result<DeviceKvCache> create(const kernels::Cuda& cuda, const ModelConfig& config,
                                      int64_t num_pages);

  PagePool& pool() { return pool_; }
  // Of one layer, without tables.
  kernels::DeviceKv layer(int64_t index) const;
  void* data() const { return pages_.data(); }
  int64_t page_bytes() const { return page_bytes_; }    // in one layer
  int64_t layer_bytes() const { return layer_bytes_; }  // distance of layers

 private:
  DeviceKvCache(const ModelConfig& config, int64_t num_pages, kernels::CudaBuffer pages);
  PagePool pool_;
  kernels::CudaBuffer pages_;
  int64_t num_kv_heads_, head_width_, page_bytes_, layer_bytes_;
};

}  // namespace gradus::model
