// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "common/rng.h"
#include "kernels/cuda.h"
#include "kernels/optimizer.h"
#include "model/device_transformer.h"
#include "model/parameters.h"
#include "model/transformer.h"

namespace gradus::testing {

inline float rounded_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u);
}

// A small model whose weights are bf16 numbers, so that CPU and GPU have the same.
struct DeviceModel {
  DeviceModel(const kernels::Cuda& cuda, model::ModelConfig config, uint64_t seed) : cpu(config) {
    model::init_parameters(config, cpu.layout(), seed, 0.08, cpu.parameters());
    for (int64_t i = 0; i < cpu.layout().size; ++i) {
      cpu.parameters()[i] = rounded_to_bf16(cpu.parameters()[i]);
    }
    if (config.attention_bias) {
      float* bias = cpu.parameters() + cpu.layout().layers[0].qkv_bias;
      for (int i = 0; i < 64; ++i) bias[i] = rounded_to_bf16(0.05f * static_cast<float>(i - 32));
    }
    device = upload(cuda);
  }
  std::unique_ptr<model::DeviceTransformer> upload(const kernels::Cuda& cuda) {
    auto created = model::DeviceTransformer::create(
        cuda, cpu.config(), [&](const model::WeightSpec& spec, float* out) {
          return model::read_parameter(cpu.layout(), cpu.parameters(), spec, out);
        });
    EXPECT_TRUE(created.ok()) << created.status().message();
    return std::move(*created);
  }
  model::Transformer cpu;
  std::unique_ptr<model::DeviceTransformer> device;
};

// Like Qwen3: norms of heads, wide heads, a tied head.
inline model::ModelConfig qwen3_like() {
  return {.family = model::Family::kQwen3,
          .vocab_size = 1003,
          .hidden_size = 192,
          .intermediate_size = 328,
          .num_layers = 3,
          .num_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 128,
          .max_position_embeddings = 2048,
          .tie_embeddings = true,
          .qk_norm = true};
}
// Like Qwen2: biases, seven heads a group, a head of its own.
inline model::ModelConfig qwen2_like() {
  return {.family = model::Family::kQwen2,
          .vocab_size = 517,
          .hidden_size = 448,
          .intermediate_size = 600,
          .num_layers = 2,
          .num_heads = 7,
          .num_kv_heads = 1,
          .head_dim = 64,
          .max_position_embeddings = 1024,
          .attention_bias = true};
}

// The update of AdamwStep{.learning_rate = 0.01, .weight_decay = 0.1, .step = step, .scale = 0.5}.
inline void adamw_on_host(const model::ParameterLayout& layout, int64_t step, const float* gradient,
                          float* weights, float* m, float* v) {
  for (const model::ParameterPlace& place : layout.places) {
    kernels::adamw({.weights = weights + place.offset,
                    .gradients = gradient + place.offset,
                    .m = m + place.offset,
                    .v = v + place.offset,
                    .count = place.size,
                    .gradient_scale = 0.5f,
                    .learning_rate = 0.01f,
                    .weight_decay = place.columns > 0 ? 0.1f : 0.0f,
                    .correction1 = static_cast<float>(1 - std::pow(0.9, step)),
                    .correction2 = static_cast<float>(1 - std::pow(0.999, step))});
  }
}

inline std::vector<int32_t> random_ids(int64_t count, int64_t vocab, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(hash64({seed, static_cast<uint64_t>(i)}) %
                                       static_cast<uint64_t>(vocab)));
  }
  return ids;
}

}  // namespace gradus::testing
