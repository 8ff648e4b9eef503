// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "common/rng.h"
#include "kernels/gemm.h"
#include "model/transformer.h"

namespace gradus::testing {

// An adapter none of whose factors is 0, as training leaves it, merged into `transformer`.
inline void attach_adapter(model::Transformer& transformer, const model::LoraConfig& config,
                           uint64_t seed = 5, double size = 0.05) {
  auto adapter =
      model::LoraAdapter::create(transformer.config(), config, transformer.parameters(), seed);
  GRADUS_CHECK(adapter.ok(), adapter.status().message());
  for (const model::ParameterPlace& place : (*adapter)->layout().places) {
    RngSequence rng(hash64({seed, hash64(place.hf_name)}), RngStream::kTask);
    std::vector<float> values(static_cast<size_t>(place.rows * place.columns));
    for (float& value : values) value = static_cast<float>(size * rng.normal());
    kernels::pack_weight(values.data(), place.columns, place.rows, place.columns,
                         (*adapter)->values() + place.offset);
  }
  transformer.set_adapter(std::move(*adapter));
}

// A matrix of a buffer, row-major.
inline std::vector<float> matrix_at(const float* buffer, int64_t offset, int64_t rows,
                                    int64_t columns) {
  std::vector<float> values(static_cast<size_t>(rows * columns));
  kernels::unpack_weight(buffer + offset, rows, columns, values.data(), columns);
  return values;
}

}  // namespace gradus::testing
