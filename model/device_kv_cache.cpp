// SPDX-License-Identifier: Apache-2.0
#include "model/device_kv_cache.h"

#include <utility>

namespace gradus::model {
namespace {

// Of one layer, bf16.
int64_t page_bytes_of(const ModelConfig& config) {
  return 2 * config.num_kv_heads * config.head_dim * kernels::kDevicePageTokens * int64_t{2};
}

}  // namespace

int64_t DeviceKvCache::bytes_per_page(const ModelConfig& config) {
  return config.num_layers * page_bytes_of(config);
}

DeviceKvCache::DeviceKvCache(const ModelConfig& config, int64_t num_pages,
                             kernels::CudaBuffer pages)
    : pool_(num_pages),
      pages_(std::move(pages)),
      num_kv_heads_(config.num_kv_heads),
      head_width_(config.head_dim),
      page_bytes_(page_bytes_of(config)),
      layer_bytes_(num_pages * page_bytes_) {}

Result<DeviceKvCache> DeviceKvCache::create(const kernels::Cuda& cuda, const ModelConfig& config,
                                            int64_t num_pages) {
  Result<kernels::CudaBuffer> pages =
      kernels::CudaBuffer::allocate(cuda, static_cast<size_t>(num_pages * bytes_per_page(config)));
  if (!pages.ok()) return pages.status().with_prefix("the key-value cache");
  GRADUS_RETURN_IF_ERROR(pages->fill(0));
  return DeviceKvCache(config, num_pages, std::move(*pages));
}

kernels::DeviceKv DeviceKvCache::layer(int64_t index) const {
  return {.pages = pages_.as<uint8_t>() + index * layer_bytes_,
          .num_kv_heads = num_kv_heads_,
          .head_width = head_width_};
}

}  // namespace gradus::model
