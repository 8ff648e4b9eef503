// SPDX-License-Identifier: Apache-2.0
#include "model/device_transformer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <utility>

#include "common/parallel.h"
#include "kernels/cuda_check.h"
#include "kernels/lm_head.h"
#include "kernels/rope.h"
#include "model/transformer.h"

namespace gradus::model {
namespace {

using kernels::CudaBuffer;

constexpr int64_t kBf16 = 2, kF32 = 4;

uint16_t to_bf16(float x) {  // to nearest, ties to even; weights are finite
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

int64_t q_columns(const ModelConfig& config) { return config.num_heads * config.head_dim; }
int64_t kv_columns(const ModelConfig& config) { return config.num_kv_heads * config.head_dim; }
int64_t qkv_columns(const ModelConfig& config) {
  return q_columns(config) + 2 * kv_columns(config);
}

int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Of a matrix, in numbers: each begins at a multiple of 256 bytes.
constexpr int64_t kMatrixNumbers = 128;
int64_t matrix_size(int64_t count) { return round_up(count, kMatrixNumbers); }

// Where the vectors of a model are, in bytes.
struct VectorPlaces {
  int64_t next = 0;
  int64_t take(int64_t count) { return std::exchange(next, next + round_up(count * kF32, 256)); }
};
// Those of the next layer; what is not a vector is left at 0.
DeviceTransformer::Layer place_vectors(const ModelConfig& config, VectorPlaces& places) {
  const auto take_if = [&](bool has, int64_t count) { return has ? places.take(count) : -1; };
  DeviceTransformer::Layer layer = {};
  layer.attention_norm = places.take(config.hidden_size);
  layer.qkv_bias = take_if(config.attention_bias, qkv_columns(config));
  layer.q_norm = take_if(config.qk_norm, config.head_dim);
  layer.k_norm = take_if(config.qk_norm, config.head_dim);
  layer.output_bias = take_if(config.attention_output_bias, config.hidden_size);
  layer.mlp_norm = places.take(config.hidden_size);
  layer.gate_up_bias = take_if(config.mlp_bias, 2 * config.intermediate_size);
  layer.down_bias = take_if(config.mlp_bias, config.hidden_size);
  return layer;
}

// Activations of a pass, in bytes from the start of the buffer.
struct Activations {
  int64_t stream, normed, qkv, attention, inner, size;
  Activations(const ModelConfig& config, int64_t rows) {
    int64_t next = 0;
    const auto take = [&](int64_t bytes) {
      return std::exchange(next, next + (bytes + 255) / 256 * 256);
    };
    stream = take(rows * config.hidden_size * kF32);
    normed = take(rows * config.hidden_size * kBf16);
    qkv = take(rows * qkv_columns(config) * kBf16);
    attention = take(rows * q_columns(config) * kBf16);
    inner = take(rows * config.intermediate_size * kBf16);
    size = next;
  }
};

}  // namespace

Status DeviceTransformer::check_supported(const ModelConfig& config) {
  GRADUS_RETURN_IF_ERROR(validate(config));
  const auto refuse = [](const char* field, int64_t seen, const char* expected) {
    return invalid_argument("device cuda: {} is {}; its kernels need {}; run this model on the CPU",
                            field, seen, expected);
  };
  if (config.head != Head::kLanguage) {
    return invalid_argument(
        "device cuda: the model has a score head; its kernels need a language model; run this "
        "model on the CPU");
  }
  if (config.head_dim != 64 && config.head_dim != 128) {
    return refuse("head_dim", config.head_dim, "64 or 128");
  }
  if (config.num_heads / config.num_kv_heads > kernels::kDeviceMaxHeadsPerGroup) {
    return refuse("num_heads / num_kv_heads", config.num_heads / config.num_kv_heads, "at most 16");
  }
  if (config.hidden_size % 8 != 0) {
    return refuse("hidden_size", config.hidden_size, "a multiple of 8");
  }
  if (config.intermediate_size % 8 != 0) {
    return refuse("intermediate_size", config.intermediate_size, "a multiple of 8");
  }
  return {};
}

DeviceTransformer::DeviceTransformer(const kernels::Cuda& cuda, ModelConfig config)
    : cuda_(cuda), config_(std::move(config)) {}

std::vector<DeviceUnit> device_units(const ModelConfig& config, int64_t num_slices) {
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  const int64_t q = q_columns(config), qkv = qkv_columns(config);
  std::vector<DeviceUnit> units;
  const auto add = [&](int64_t size) {
    const int64_t begin = units.empty() ? 0 : units.back().begin + units.back().padded;
    units.push_back({begin, size, round_up(size, kMatrixNumbers * num_slices)});
  };
  add(matrix_size(config.vocab_size * width));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    add(matrix_size(qkv * width) + matrix_size(width * q) + matrix_size(2 * inner * width) +
        matrix_size(width * inner));
  }
  if (!config.tie_embeddings) add(matrix_size(config.vocab_size * width));
  return units;
}

int64_t num_device_vector_floats(const ModelConfig& config) {
  VectorPlaces places;
  for (int64_t i = 0; i < config.num_layers; ++i) place_vectors(config, places);
  places.take(config.hidden_size);
  return places.next / kF32;
}

void DeviceTransformer::lay_out() {
  const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
  const int64_t q = q_columns(config_), qkv = qkv_columns(config_);
  VectorPlaces vectors;
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    layers_.push_back(place_vectors(config_, vectors));
  }
  final_norm_ = vectors.take(width);
  matrices_ = vectors.next;
  const auto offset_of = [&](size_t unit) { return matrices_ + units_[unit].begin * kBf16; };
  embedding_ = offset_of(0);
  size_ = matrices_ + units_[0].size * kBf16;
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    Layer& layer = layers_[static_cast<size_t>(i)];
    int64_t next = offset_of(static_cast<size_t>(i + 1));
    const auto place = [&](int64_t count) {
      return std::exchange(next, next + matrix_size(count) * kBf16);
    };
    layer.qkv = place(qkv * width);
    layer.output = place(width * q);
    layer.gate_up = place(2 * inner * width);
    layer.down = place(width * inner);
    size_ += units_[static_cast<size_t>(i + 1)].size * kBf16;
  }
  head_ = config_.tie_embeddings ? embedding_ : offset_of(units_.size() - 1);
  if (!config_.tie_embeddings) size_ += units_.back().size * kBf16;
}

Result<std::unique_ptr<DeviceTransformer>> DeviceTransformer::allocate(const kernels::Cuda& cuda,
                                                                       const ModelConfig& config,
                                                                       int64_t num_slices) {
  GRADUS_RETURN_IF_ERROR(check_supported(config));
  std::unique_ptr<DeviceTransformer> transformer(new DeviceTransformer(cuda, config));
  transformer->units_ = device_units(config, num_slices);
  transformer->unit_places_.resize(transformer->units_.size());
  transformer->lay_out();
  Result<CudaBuffer> vectors =
      CudaBuffer::allocate(cuda, static_cast<size_t>(transformer->matrices_));
  if (!vectors.ok()) return vectors.status().with_prefix("the model's weights");
  transformer->vectors_.emplace(std::move(*vectors));
  GRADUS_RETURN_IF_ERROR(transformer->allocate_matrices());
  return transformer;
}

Status DeviceTransformer::allocate_matrices() {
  GRADUS_CHECK(!weights_, "the matrices are there");
  const DeviceUnit& last = units_.back();
  Result<CudaBuffer> weights =
      CudaBuffer::allocate(cuda_, static_cast<size_t>((last.begin + last.padded) * kBf16));
  if (!weights.ok()) return weights.status().with_prefix("the model's weights");
  weights_.emplace(std::move(*weights));
  return {};
}

void DeviceTransformer::release_matrices() { weights_.reset(); }

int DeviceTransformer::unit_of(int64_t offset) const {
  const int64_t number = (offset - matrices_) / kBf16;
  const auto after =
      std::upper_bound(units_.begin(), units_.end(), number,
                       [](int64_t value, const DeviceUnit& unit) { return value < unit.begin; });
  return static_cast<int>(after - units_.begin()) - 1;
}

uint8_t* DeviceTransformer::unit_at(int unit) const {
  const size_t index = static_cast<size_t>(unit);
  if (weights_) return weights_->as<uint8_t>() + units_[index].begin * kBf16;
  GRADUS_CHECK(unit_places_[index] != nullptr,
               fmt::format("the weights of unit {} are on other ranks", unit));
  return static_cast<uint8_t*>(unit_places_[index]);
}

uint8_t* DeviceTransformer::address(int64_t offset) const {
  if (offset < matrices_) return vectors_->as<uint8_t>() + offset;
  if (weights_) return weights_->as<uint8_t>() + (offset - matrices_);
  const int unit = unit_of(offset);
  return unit_at(unit) + (offset - matrices_ - units_[static_cast<size_t>(unit)].begin * kBf16);
}

std::vector<DevicePart> DeviceTransformer::parts() const {
  const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
  const int64_t q = q_columns(config_), kv = kv_columns(config_), head = config_.head_dim;
  std::vector<DevicePart> parts = {
      {"model.embed_tokens.weight", config_.vocab_size, width, embedding_},
      {"model.norm.weight", width, 0, final_norm_}};
  if (!config_.tie_embeddings) {
    parts.push_back({"lm_head.weight", config_.vocab_size, width, head_});
  }
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = layers_[static_cast<size_t>(i)];
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    const auto add = [&](const std::string& name, int64_t rows, int64_t columns, int64_t offset,
                         int64_t first = 0, bool interleaved = false) {
      if (offset >= 0) parts.push_back({name, rows, columns, offset, first, interleaved});
    };
    add(prefix + "input_layernorm.weight", width, 0, layer.attention_norm);
    add(attention + "q_proj.weight", q, width, layer.qkv);
    add(attention + "k_proj.weight", kv, width, layer.qkv, q);
    add(attention + "v_proj.weight", kv, width, layer.qkv, q + kv);
    add(attention + "q_proj.bias", q, 0, layer.qkv_bias);
    add(attention + "k_proj.bias", kv, 0, layer.qkv_bias, q);
    add(attention + "v_proj.bias", kv, 0, layer.qkv_bias, q + kv);
    add(attention + "q_norm.weight", head, 0, layer.q_norm);
    add(attention + "k_norm.weight", head, 0, layer.k_norm);
    add(attention + "o_proj.weight", width, q, layer.output);
    add(attention + "o_proj.bias", width, 0, layer.output_bias);
    add(prefix + "post_attention_layernorm.weight", width, 0, layer.mlp_norm);
    add(mlp + "gate_proj.weight", inner, width, layer.gate_up, 0, true);
    add(mlp + "up_proj.weight", inner, width, layer.gate_up, 8, true);
    add(mlp + "gate_proj.bias", inner, 0, layer.gate_up_bias, 0, true);
    add(mlp + "up_proj.bias", inner, 0, layer.gate_up_bias, 8, true);
    add(mlp + "down_proj.weight", width, inner, layer.down);
    add(mlp + "down_proj.bias", width, 0, layer.down_bias);
  }
  return parts;
}

Result<std::unique_ptr<DeviceTransformer>> DeviceTransformer::create(
    const kernels::Cuda& cuda, const ModelConfig& config, const WeightSource& read_weight,
    int64_t num_slices) {
  Result<std::unique_ptr<DeviceTransformer>> allocated = allocate(cuda, config, num_slices);
  if (!allocated.ok()) return allocated.status();
  DeviceTransformer& transformer = **allocated;
  const std::vector<DevicePart> parts = transformer.parts();
  // Parts of one matrix, or of one vector, follow one another.
  std::vector<float> values, vector;
  std::vector<uint16_t> matrix;
  for (size_t first = 0, end = 0; first < parts.size(); first = end) {
    int64_t rows = 0;
    while (end < parts.size() && parts[end].offset == parts[first].offset)
      rows += parts[end++].rows;
    const bool is_matrix = parts[first].columns > 0;
    const int64_t columns = is_matrix ? parts[first].columns : 1;
    (is_matrix ? matrix.resize(static_cast<size_t>(rows * columns))
               : vector.resize(static_cast<size_t>(rows)));
    for (size_t i = first; i < end; ++i) {
      const DevicePart& part = parts[i];
      values.resize(static_cast<size_t>(part.rows * columns));
      GRADUS_RETURN_IF_ERROR(
          read_weight({part.hf_name, is_matrix ? std::vector<int64_t>{part.rows, part.columns}
                                               : std::vector<int64_t>{part.rows}},
                      values.data()));
      parallel_for(part.rows, 64, [&](int64_t begin, int64_t stop) {
        for (int64_t row = begin; row < stop; ++row) {
          const int64_t to = part.row_of(row);
          for (int64_t column = 0; column < columns; ++column) {
            const float value = values[static_cast<size_t>(row * columns + column)];
            const size_t place = static_cast<size_t>(to * columns + column);
            if (is_matrix) {
              matrix[place] = to_bf16(value);
            } else {
              vector[place] = value;
            }
          }
        }
      });
    }
    const void* from = is_matrix ? static_cast<const void*>(matrix.data()) : vector.data();
    GRADUS_RETURN_IF_ERROR(
        kernels::copy_to_device(cuda, transformer.at<uint8_t>(parts[first].offset), from,
                                static_cast<size_t>(rows * columns * (is_matrix ? kBf16 : kF32))));
  }
  return allocated;
}

Result<std::unique_ptr<DeviceTransformer>> DeviceTransformer::create_random(
    const kernels::Cuda& cuda, const ModelConfig& config, uint64_t seed, int64_t num_slices) {
  Result<std::unique_ptr<DeviceTransformer>> allocated = allocate(cuda, config, num_slices);
  if (!allocated.ok()) return allocated.status();
  DeviceTransformer& transformer = **allocated;
  GRADUS_RETURN_IF_ERROR(transformer.vectors_->fill(0));
  GRADUS_RETURN_IF_ERROR(transformer.weights_->fill(0));
  const auto matrix = [&](int64_t offset, int64_t count) {
    return kernels::check_random_bf16(cuda, transformer.at<uint8_t>(offset), count, 0.02f,
                                      seed + static_cast<uint64_t>(offset));
  };
  const auto ones = [&](int64_t offset, int64_t count) -> Status {
    if (offset < 0) return {};
    const std::vector<float> values(static_cast<size_t>(count), 1.0f);
    return kernels::copy_to_device(cuda, transformer.at<float>(offset), values.data(),
                                   values.size() * sizeof(float));
  };
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  GRADUS_RETURN_IF_ERROR(matrix(transformer.embedding_, config.vocab_size * width));
  if (!config.tie_embeddings) {
    GRADUS_RETURN_IF_ERROR(matrix(transformer.head_, config.vocab_size * width));
  }
  GRADUS_RETURN_IF_ERROR(ones(transformer.final_norm_, width));
  for (const Layer& layer : transformer.layers_) {
    GRADUS_RETURN_IF_ERROR(ones(layer.attention_norm, width));
    GRADUS_RETURN_IF_ERROR(ones(layer.mlp_norm, width));
    GRADUS_RETURN_IF_ERROR(ones(layer.q_norm, config.head_dim));
    GRADUS_RETURN_IF_ERROR(ones(layer.k_norm, config.head_dim));
    GRADUS_RETURN_IF_ERROR(matrix(layer.qkv, qkv_columns(config) * width));
    GRADUS_RETURN_IF_ERROR(matrix(layer.output, width * q_columns(config)));
    GRADUS_RETURN_IF_ERROR(matrix(layer.gate_up, 2 * inner * width));
    GRADUS_RETURN_IF_ERROR(matrix(layer.down, width * inner));
  }
  GRADUS_RETURN_IF_ERROR(kernels::synchronize(cuda));
  return allocated;
}

const void* DeviceTransformer::head() const { return at<uint8_t>(head_); }

int64_t DeviceTransformer::activation_bytes(const ModelConfig& config, int64_t max_rows) {
  return Activations(config, max_rows).size;
}

Status DeviceTransformer::reserve(int64_t max_rows, int64_t num_positions) {
  if (max_rows > max_rows_) {
    GRADUS_RETURN_IF_ERROR(kernels::synchronize(cuda_));
    activations_.reset();
    Result<CudaBuffer> buffer =
        CudaBuffer::allocate(cuda_, static_cast<size_t>(activation_bytes(config_, max_rows)));
    if (!buffer.ok()) return buffer.status().with_prefix("activations");
    activations_.emplace(std::move(*buffer));
    max_rows_ = max_rows;
  }
  if (num_positions > num_positions_) {
    kernels::RopeTable table(rope_frequencies(config_));
    table.reserve(num_positions);
    const size_t half = static_cast<size_t>(num_positions * config_.head_dim / 2) * sizeof(float);
    GRADUS_RETURN_IF_ERROR(kernels::synchronize(cuda_));
    rotary_.reset();
    Result<CudaBuffer> buffer = CudaBuffer::allocate(cuda_, 2 * half);
    if (!buffer.ok()) return buffer.status().with_prefix("rotary angles");
    rotary_.emplace(std::move(*buffer));
    GRADUS_RETURN_IF_ERROR(kernels::copy_to_device(cuda_, rotary_->data(), table.cosines(), half));
    GRADUS_RETURN_IF_ERROR(
        kernels::copy_to_device(cuda_, rotary_->as<uint8_t>() + half, table.sines(), half));
    num_positions_ = num_positions;
  }
  return {};
}

kernels::HeadRotation DeviceTransformer::rotation(int64_t layer) const {
  const Layer& places = layers_[static_cast<size_t>(layer)];
  const float* cosines = rotary_->as<float>();
  return {at<float>(places.q_norm), at<float>(places.k_norm),
          static_cast<float>(config_.rms_norm_eps), cosines,
          cosines + num_positions_ * config_.head_dim / 2};
}

float DeviceTransformer::attention_scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
}

Status DeviceTransformer::embed(const DevicePass& pass, float* x_TD, kernels::Stream stream) {
  return kernels::device_embed(cuda_, {.embedding_VD = at<uint8_t>(embedding_),
                                       .tokens_T = pass.token_ids,
                                       .t = pass.num_rows,
                                       .d = config_.hidden_size,
                                       .x_TD = x_TD,
                                       .stream = stream});
}

Status DeviceTransformer::layer_forward(int64_t index, const DevicePass& pass, kernels::DeviceKv kv,
                                        const DeviceLayerRows& rows, kernels::Stream stream) {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
  const int64_t qkv = qkv_columns(config_);
  kv.tables = pass.tables;
  kv.table_stride = pass.table_stride;
  const auto norm = [&](const float* x, int64_t weight) {
    return kernels::device_rms_norm(cuda_, {.x_TD = x,
                                            .weight_D = at<float>(weight),
                                            .r = pass.num_rows,
                                            .d = width,
                                            .eps = static_cast<float>(config_.rms_norm_eps),
                                            .y_RD = rows.normed_TD,
                                            .stream = stream});
  };
  kernels::LinearParams linear = {.x_TK = rows.normed_TD,
                                  .w_NK = at<uint8_t>(layer.qkv),
                                  .bias_N = at<float>(layer.qkv_bias),
                                  .t = pass.num_rows,
                                  .n = qkv,
                                  .k = width,
                                  .y = rows.raw_qkv == nullptr ? rows.qkv : rows.raw_qkv,
                                  .y_stride = qkv,
                                  .stream = stream};
  GRADUS_RETURN_IF_ERROR(norm(rows.input_TD, layer.attention_norm));
  GRADUS_RETURN_IF_ERROR(kernels::device_linear(cuda_, linear));
  if (rows.raw_qkv != nullptr) {
    GRADUS_RETURN_IF_ERROR(
        kernels::device_copy(cuda_, rows.qkv, rows.raw_qkv, pass.num_rows * qkv * kBf16, stream));
  }
  const auto rotate = [&](int64_t first, int64_t count) -> Status {
    if (count == 0) return {};
    return kernels::device_rotate(cuda_,
                                  {.qkv_T = static_cast<uint8_t*>(rows.qkv) + first * qkv * kBf16,
                                   .t = count,
                                   .num_heads = config_.num_heads,
                                   .rotation = rotation(index),
                                   .positions_T = pass.positions + first,
                                   .table_rows_T = pass.table_rows + first,
                                   .kv = kv,
                                   .stream = stream});
  };
  if (pass.tiles != nullptr) {
    GRADUS_RETURN_IF_ERROR(rotate(0, pass.num_first_rows));
    const int64_t page_bytes = kv.page_size() * kBf16;
    GRADUS_RETURN_IF_ERROR(kernels::device_copy_pages(cuda_, kv.pages, pass.copies, pass.num_copies,
                                                      page_bytes, 1, page_bytes, stream));
    GRADUS_RETURN_IF_ERROR(rotate(pass.num_first_rows, pass.num_rows - pass.num_first_rows));
  }
  GRADUS_RETURN_IF_ERROR(kernels::device_attention(cuda_, {.qkv_T = rows.qkv,
                                                           .out_T = rows.attention,
                                                           .num_heads = config_.num_heads,
                                                           .scale = attention_scale(),
                                                           .kv = kv,
                                                           .rotation = rotation(index),
                                                           .positions_T = pass.positions,
                                                           .t = pass.num_rows,
                                                           .max_chunks = pass.max_chunks,
                                                           .arrivals = pass.arrivals,
                                                           .partial = pass.partial,
                                                           .tiles = pass.tiles,
                                                           .num_tiles = pass.num_tiles,
                                                           .lse_TH = rows.lse_TH,
                                                           .stream = stream}));
  linear.x_TK = rows.attention;
  linear.w_NK = at<uint8_t>(layer.output);
  linear.bias_N = at<float>(layer.output_bias);
  linear.n = width;
  linear.k = q_columns(config_);
  linear.y = rows.middle_TD;
  linear.y_stride = width;
  linear.output = kernels::LinearOutput::kAdd;
  linear.addend_TN = rows.input_TD;
  GRADUS_RETURN_IF_ERROR(kernels::device_linear(cuda_, linear));
  GRADUS_RETURN_IF_ERROR(norm(rows.middle_TD, layer.mlp_norm));
  linear.x_TK = rows.normed_TD;
  linear.w_NK = at<uint8_t>(layer.gate_up);
  linear.bias_N = at<float>(layer.gate_up_bias);
  linear.n = 2 * inner;
  linear.k = width;
  linear.y = rows.inner;
  linear.y_stride = inner;
  linear.output = kernels::LinearOutput::kSwiglu;
  linear.addend_TN = nullptr;
  linear.kept_TN = rows.gate_up;
  GRADUS_RETURN_IF_ERROR(kernels::device_linear(cuda_, linear));
  linear.x_TK = rows.inner;
  linear.w_NK = at<uint8_t>(layer.down);
  linear.bias_N = at<float>(layer.down_bias);
  linear.n = width;
  linear.k = inner;
  linear.y = rows.output_TD;
  linear.y_stride = width;
  linear.output = kernels::LinearOutput::kAdd;
  linear.addend_TN = rows.middle_TD;
  linear.kept_TN = nullptr;
  return kernels::device_linear(cuda_, linear);
}

Status DeviceTransformer::forward(const DevicePass& pass, DeviceKvCache& cache,
                                  kernels::Stream stream) {
  GRADUS_CHECK(pass.num_rows <= max_rows_,
               fmt::format("{} rows, reserved {}", pass.num_rows, max_rows_));
  const Activations places(config_, max_rows_);
  auto* base = activations_->as<uint8_t>();
  auto* x = reinterpret_cast<float*>(base + places.stream);
  const DeviceLayerRows rows = {.input_TD = x,
                                .middle_TD = x,
                                .output_TD = x,
                                .normed_TD = base + places.normed,
                                .qkv = base + places.qkv,
                                .attention = base + places.attention,
                                .inner = base + places.inner};
  GRADUS_RETURN_IF_ERROR(embed(pass, x, stream));
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    GRADUS_RETURN_IF_ERROR(layer_forward(i, pass, cache.layer(i), rows, stream));
  }
  return {};
}

Status DeviceTransformer::final_norm(const int32_t* rows, int64_t count, void* hidden,
                                     kernels::Stream stream) {
  const Activations places(config_, max_rows_);
  return final_norm(reinterpret_cast<const float*>(activations_->as<uint8_t>() + places.stream),
                    rows, count, hidden, stream);
}

Status DeviceTransformer::final_norm(const float* x_TD, const int32_t* rows, int64_t count,
                                     void* hidden, kernels::Stream stream) {
  return kernels::device_rms_norm(cuda_, {.x_TD = x_TD,
                                          .weight_D = at<float>(final_norm_),
                                          .rows_R = rows,
                                          .r = count,
                                          .d = config_.hidden_size,
                                          .eps = static_cast<float>(config_.rms_norm_eps),
                                          .y_RD = hidden,
                                          .stream = stream});
}

void add_tiles(std::vector<kernels::AttentionTile>& tiles, int64_t row_begin, int64_t num_rows,
               int64_t first_position, int64_t table_row) {
  for (int64_t row = 0; row < num_rows; row += kernels::kDevicePageTokens) {
    tiles.push_back({static_cast<int32_t>(row_begin + row),
                     static_cast<int32_t>(std::min(kernels::kDevicePageTokens, num_rows - row)),
                     static_cast<int32_t>(first_position + row), static_cast<int32_t>(table_row)});
  }
}

namespace {

constexpr int64_t kMaxSequences = 256;  // of one pass of the scorer

int64_t pages_for(size_t num_tokens) {
  return (static_cast<int64_t>(num_tokens) + kernels::kDevicePageTokens - 1) /
         kernels::kDevicePageTokens;
}

// Uploads a vector to the front of a new buffer.
template <class T>
Result<CudaBuffer> upload(const kernels::Cuda& cuda, const std::vector<T>& values) {
  Result<CudaBuffer> buffer = CudaBuffer::allocate(cuda, values.size() * sizeof(T));
  GRADUS_RETURN_IF_ERROR(buffer.status());
  GRADUS_RETURN_IF_ERROR(buffer->copy_from_host(values.data(), values.size() * sizeof(T)));
  return buffer;
}

}  // namespace

DeviceScorer::DeviceScorer(DeviceTransformer& transformer, int64_t max_rows)
    : transformer_(transformer), max_rows_(max_rows) {}

Result<std::vector<std::vector<float>>> DeviceScorer::score(
    std::span<const std::vector<int32_t>> sequences, float temperature) {
  std::vector<std::vector<float>> logprobs(sequences.size());
  size_t longest = 1;
  for (const std::vector<int32_t>& ids : sequences) longest = std::max(longest, ids.size());
  GRADUS_RETURN_IF_ERROR(transformer_.reserve(max_rows_, static_cast<int64_t>(longest)));
  const int64_t num_pages =
      std::max(pages_for(longest), max_rows_ / kernels::kDevicePageTokens) + kMaxSequences;
  if (!cache_ || cache_->pool().num_pages() < num_pages) {
    cache_.reset();
    Result<DeviceKvCache> cache =
        DeviceKvCache::create(transformer_.cuda(), transformer_.config(), num_pages);
    GRADUS_RETURN_IF_ERROR(cache.status());
    cache_.emplace(std::move(*cache));
  }
  for (size_t first = 0, end = 0; first < sequences.size(); first = end) {
    int64_t rows = 0;
    do {
      rows += static_cast<int64_t>(sequences[end++].size());
    } while (end < sequences.size() && static_cast<int64_t>(end - first) < kMaxSequences &&
             rows + static_cast<int64_t>(sequences[end].size()) <= max_rows_);
    // A sequence longer than a pass is alone, and goes in parts.
    for (int64_t begin = 0; begin < rows; begin += max_rows_) {
      GRADUS_RETURN_IF_ERROR(pass(sequences.subspan(first, end - first), begin, temperature,
                                  std::span(logprobs).subspan(first, end - first)));
    }
  }
  return logprobs;
}

// The rows [first_row, first_row + max_rows) of the sequences, one after the other.
Status DeviceScorer::pass(std::span<const std::vector<int32_t>> sequences, int64_t first_row,
                          float temperature, std::span<std::vector<float>> logprobs) {
  const kernels::Cuda& cuda = transformer_.cuda();
  const ModelConfig& config = transformer_.config();
  size_t longest = 1;
  for (const std::vector<int32_t>& ids : sequences) longest = std::max(longest, ids.size());
  const int64_t stride = pages_for(longest);
  std::vector<int32_t> tokens, positions, table_rows, tables, wanted, targets;
  std::vector<size_t> owners;
  std::vector<kernels::AttentionTile> tiles;
  int64_t row = 0, next_page = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<int32_t>& ids = sequences[i];
    const int64_t length = static_cast<int64_t>(ids.size());
    for (int64_t page = 0; page < stride; ++page) {
      tables.push_back(
          static_cast<int32_t>(std::min(next_page + page, cache_->pool().num_pages() - 1)));
    }
    next_page += pages_for(ids.size());
    const int64_t begin = std::clamp<int64_t>(first_row - row, 0, length);
    const int64_t end = std::clamp<int64_t>(first_row + max_rows_ - row, 0, length);
    row += length;
    if (begin == end) continue;
    add_tiles(tiles, static_cast<int64_t>(tokens.size()), end - begin, begin,
              static_cast<int64_t>(i));
    for (int64_t position = begin; position < end; ++position) {
      if (position + 1 < length) {
        wanted.push_back(static_cast<int32_t>(tokens.size()));
        targets.push_back(ids[static_cast<size_t>(position + 1)]);
        owners.push_back(i);
      }
      tokens.push_back(ids[static_cast<size_t>(position)]);
      positions.push_back(static_cast<int32_t>(position));
      table_rows.push_back(static_cast<int32_t>(i));
    }
  }
  if (tokens.empty()) return {};
  const Result<CudaBuffer> token_ids = upload(cuda, tokens), places = upload(cuda, positions),
                           rows = upload(cuda, table_rows), pages = upload(cuda, tables),
                           tile_list = upload(cuda, tiles), wanted_rows = upload(cuda, wanted),
                           target_ids = upload(cuda, targets),
                           temperatures =
                               upload(cuda, std::vector<float>(targets.size(), temperature));
  for (const auto* buffer :
       {&token_ids, &places, &rows, &pages, &tile_list, &wanted_rows, &target_ids, &temperatures}) {
    GRADUS_RETURN_IF_ERROR(buffer->status());
  }
  GRADUS_RETURN_IF_ERROR(transformer_.forward({.num_rows = static_cast<int64_t>(tokens.size()),
                                               .token_ids = token_ids->as<int32_t>(),
                                               .positions = places->as<int32_t>(),
                                               .table_rows = rows->as<int32_t>(),
                                               .tables = pages->as<int32_t>(),
                                               .table_stride = stride,
                                               .tiles = tile_list->as<kernels::AttentionTile>(),
                                               .num_tiles = static_cast<int64_t>(tiles.size())},
                                              *cache_, nullptr));
  const int64_t count = static_cast<int64_t>(targets.size());
  if (count == 0) return kernels::synchronize(cuda);
  const size_t workspace_bytes =
      kernels::lm_head_score_workspace_bytes(cuda, count, config.vocab_size);
  Result<CudaBuffer> hidden =
      CudaBuffer::allocate(cuda, static_cast<size_t>(count * config.hidden_size * kBf16));
  Result<CudaBuffer> workspace = CudaBuffer::allocate(cuda, workspace_bytes);
  const Result<CudaBuffer> values = CudaBuffer::allocate(cuda, static_cast<size_t>(count * kF32));
  for (const auto* buffer : {&hidden, &workspace}) GRADUS_RETURN_IF_ERROR(buffer->status());
  GRADUS_RETURN_IF_ERROR(values.status());
  GRADUS_RETURN_IF_ERROR(workspace->fill(0));
  GRADUS_RETURN_IF_ERROR(
      transformer_.final_norm(wanted_rows->as<int32_t>(), count, hidden->data(), nullptr));
  GRADUS_RETURN_IF_ERROR(kernels::lm_head_score(cuda, {.w_VD = transformer_.head(),
                                                       .h_BD = hidden->data(),
                                                       .temperature_B = temperatures->as<float>(),
                                                       .token_B = target_ids->as<int32_t>(),
                                                       .b = count,
                                                       .v = config.vocab_size,
                                                       .d = config.hidden_size,
                                                       .logprob_B = values->as<float>(),
                                                       .workspace = workspace->data(),
                                                       .workspace_bytes = workspace_bytes}));
  std::vector<float> scored(static_cast<size_t>(count));
  GRADUS_RETURN_IF_ERROR(values->copy_to_host(scored.data(), scored.size() * sizeof(float)));
  for (size_t i = 0; i < scored.size(); ++i) logprobs[owners[i]].push_back(scored[i]);
  return {};
}

}  // namespace gradus::model
