// SPDX-License-Identifier: Apache-2.0
#include "model/parameters.h"

#include <cmath>
#include <cstring>

#include "common/parallel.h"
#include "common/rng.h"
#include "kernels/gemm.h"

namespace gradus::model {
namespace {

using kernels::packed_size;
using kernels::padded;

constexpr const char* kScore = "score.weight";

class LayoutBuilder {
 public:
  explicit LayoutBuilder(ParameterLayout& layout) : layout_(layout) {}

  int64_t matrix(const std::string& name, int64_t rows, int64_t columns) {
    return add({name, layout_.size, rows, columns, packed_size(rows, columns)});
  }
  int64_t vector(const std::string& name, int64_t length) {
    return add({name, layout_.size, length, 0, padded(length)});
  }

 private:
  int64_t add(ParameterPlace place) {
    layout_.size += place.size;
    layout_.places.push_back(std::move(place));
    return layout_.places.back().offset;
  }

  ParameterLayout& layout_;
};

std::vector<int64_t> shape_of(const ParameterPlace& place) {
  return place.columns == 0 ? std::vector<int64_t>{place.rows}
                            : std::vector<int64_t>{place.rows, place.columns};
}

// A packed matrix of normal numbers, by its name and the seed.
void init_matrix(const ParameterPlace& place, uint64_t seed, double deviation, float* out) {
  RngSequence rng(hash64({seed, hash64(place.hf_name)}), RngStream::kInit);
  std::vector<float> matrix(static_cast<size_t>(place.rows * place.columns));
  for (float& value : matrix) value = static_cast<float>(deviation * rng.normal());
  kernels::pack_weight(matrix.data(), place.columns, place.rows, place.columns, out);
}

}  // namespace

const ParameterPlace& find_place(const ParameterLayout& layout, const std::string& hf_name) {
  for (const ParameterPlace& place : layout.places) {
    if (place.hf_name == hf_name) return place;
  }
  GRADUS_CHECK(false, "no weight named " + hf_name);
}

ParameterLayout parameter_layout(const ModelConfig& config) {
  ParameterLayout layout;
  LayoutBuilder builder(layout);
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  const int64_t q_rows = config.num_heads * config.head_dim;
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  layout.q_columns = padded(q_rows);
  layout.kv_columns = padded(kv_rows);
  layout.mlp_columns = padded(inner);
  layout.embedding = builder.matrix("model.embed_tokens.weight", config.vocab_size, width);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    LayerPlaces layer;
    layer.attention_norm = builder.vector(prefix + "input_layernorm.weight", width);
    layer.qkv = builder.matrix(attention + "q_proj.weight", q_rows, width);
    builder.matrix(attention + "k_proj.weight", kv_rows, width);
    builder.matrix(attention + "v_proj.weight", kv_rows, width);
    if (config.attention_bias) {
      layer.qkv_bias = builder.vector(attention + "q_proj.bias", q_rows);
      builder.vector(attention + "k_proj.bias", kv_rows);
      builder.vector(attention + "v_proj.bias", kv_rows);
    }
    if (config.qk_norm) {
      layer.q_norm = builder.vector(attention + "q_norm.weight", config.head_dim);
      layer.k_norm = builder.vector(attention + "k_norm.weight", config.head_dim);
    }
    layer.output = builder.matrix(attention + "o_proj.weight", width, q_rows);
    if (config.attention_output_bias) {
      layer.output_bias = builder.vector(attention + "o_proj.bias", width);
    }
    layer.mlp_norm = builder.vector(prefix + "post_attention_layernorm.weight", width);
    layer.gate_up = builder.matrix(mlp + "gate_proj.weight", inner, width);
    builder.matrix(mlp + "up_proj.weight", inner, width);
    if (config.mlp_bias) {
      layer.gate_up_bias = builder.vector(mlp + "gate_proj.bias", inner);
      builder.vector(mlp + "up_proj.bias", inner);
    }
    layer.down = builder.matrix(mlp + "down_proj.weight", width, inner);
    if (config.mlp_bias) layer.down_bias = builder.vector(mlp + "down_proj.bias", width);
    layout.layers.push_back(layer);
  }
  layout.final_norm = builder.vector("model.norm.weight", width);
  if (config.head == Head::kScore) {
    layout.head = builder.matrix(kScore, config.head_rows(), width);
  } else if (config.tie_embeddings) {
    layout.head = layout.embedding;
  } else {
    layout.head = builder.matrix("lm_head.weight", config.head_rows(), width);
  }
  return layout;
}

Status load_parameters(const CheckpointReader& checkpoint, const ParameterLayout& layout,
                       float* buffer) {
  for (const ParameterPlace& place : layout.places) {
    float* out = buffer + place.offset;
    if (place.columns == 0) {
      GRADUS_RETURN_IF_ERROR(checkpoint.read_f32(place.hf_name, shape_of(place), out));
      continue;
    }
    // A panel at a time, which stays in a core's cache between the file and its place.
    GRADUS_RETURN_IF_ERROR(checkpoint.read_f32_parts(
        place.hf_name, shape_of(place), kernels::kPanelWidth,
        [&](int64_t first_row, std::span<const float> values) {
          const int64_t rows = static_cast<int64_t>(values.size()) / place.columns;
          kernels::pack_weight(values.data(), place.columns, rows, place.columns,
                               out + first_row * place.columns);
        }));
  }
  return {};
}

void read_parameter(const ParameterPlace& place, const float* values, float* out) {
  if (place.columns == 0) {
    std::memcpy(out, values, static_cast<size_t>(place.rows) * sizeof(float));
  } else {
    kernels::unpack_weight(values, place.rows, place.columns, out, place.columns);
  }
}

Status read_parameter(const ParameterLayout& layout, const float* buffer, const WeightSpec& spec,
                      float* out) {
  const ParameterPlace& place = find_place(layout, spec.hf_name);
  GRADUS_CHECK(shape_of(place) == spec.shape, "shape of " + spec.hf_name);
  read_parameter(place, buffer + place.offset, out);
  return {};
}

void init_parameters(const ModelConfig& config, const ParameterLayout& layout, uint64_t seed,
                     double range, float* buffer) {
  const double residual_scale = 1.0 / std::sqrt(2.0 * static_cast<double>(config.num_layers));
  parallel_for(static_cast<int64_t>(layout.places.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ParameterPlace& place = layout.places[static_cast<size_t>(i)];
      float* out = buffer + place.offset;
      if (place.columns == 0) {
        const bool is_norm = place.hf_name.find("norm") != std::string::npos;
        for (int64_t j = 0; j < place.rows; ++j) out[j] = is_norm ? 1.0f : 0.0f;
        continue;
      }
      const bool is_residual =
          place.hf_name.ends_with("o_proj.weight") || place.hf_name.ends_with("down_proj.weight");
      init_matrix(place, seed, range * (is_residual ? residual_scale : 1.0), out);
    }
  });
  if (config.head == Head::kScore) init_score_head(config, layout, seed, buffer);
}

void init_score_head(const ModelConfig& config, const ParameterLayout& layout, uint64_t seed,
                     float* buffer) {
  const ParameterPlace& place = find_place(layout, kScore);
  init_matrix(place, seed, 1.0 / static_cast<double>(config.hidden_size + 1),
              buffer + place.offset);
}

uint64_t hash_parameters(const float* buffer, int64_t size) {
  // Blocks of a fixed size are hashed by themselves and their hashes hashed in order.
  constexpr int64_t kBlock = int64_t{1} << 18;
  const int64_t num_blocks = (size + kBlock - 1) / kBlock;
  std::vector<uint64_t> hashes(static_cast<size_t>(num_blocks));
  parallel_for(num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t count = std::min(kBlock, size - i * kBlock);
      const char* bytes = reinterpret_cast<const char*>(buffer + i * kBlock);
      hashes[static_cast<size_t>(i)] =
          hash64(std::string_view(bytes, static_cast<size_t>(count) * sizeof(float)));
    }
  });
  return hash64(std::string_view(reinterpret_cast<const char*>(hashes.data()),
                                 hashes.size() * sizeof(uint64_t)));
}

}  // namespace gradus::model
