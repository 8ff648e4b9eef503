// SPDX-License-Identifier: Apache-2.0
#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "kernels/activation.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"

namespace gradus::model {
namespace {

// RMSNorm of each head of q and k by itself: rows of heads are not contiguous in the fused product,
// so one call per head position.
void norm_heads(const float* weight, int64_t num_rows, int64_t num_heads, int64_t head_dim,
                float eps, float* x, int64_t stride, float* rstd, int64_t rstd_stride) {
  std::vector<float> head_rstd(static_cast<size_t>(num_rows));
  for (int64_t h = 0; h < num_heads; ++h) {
    kernels::rms_norm({.x_MD = x + h * head_dim,
                       .x_stride = stride,
                       .weight_D = weight,
                       .y_MD = x + h * head_dim,
                       .y_stride = stride,
                       .rstd_M = head_rstd.data(),
                       .m = num_rows,
                       .d = head_dim,
                       .eps = eps});
    for (int64_t t = 0; t < num_rows; ++t)
      rstd[t * rstd_stride + h] = head_rstd[static_cast<size_t>(t)];
  }
}

}  // namespace

std::vector<double> rope_frequencies(const ModelConfig& config) {
  std::vector<double> frequencies;
  for (int64_t i = 0; i < config.head_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    double frequency = std::pow(config.rope_theta, -exponent);
    const RopeScaling& scaling = config.rope_scaling;
    if (scaling.kind == RopeScaling::Kind::kLinear) {
      frequency /= scaling.factor;
    } else if (scaling.kind == RopeScaling::Kind::kLlama3) {
      const double context = static_cast<double>(scaling.original_max_position_embeddings);
      const double wavelength = 2.0 * std::numbers::pi / frequency;
      if (wavelength > context / scaling.low_freq_factor) {
        frequency /= scaling.factor;
      } else if (wavelength >= context / scaling.high_freq_factor) {
        const double smooth = (context / wavelength - scaling.low_freq_factor) /
                              (scaling.high_freq_factor - scaling.low_freq_factor);
        frequency = (1.0 - smooth) * frequency / scaling.factor + smooth * frequency;
      }
    }
    frequencies.push_back(static_cast<double>(static_cast<float>(frequency)));
  }
  return frequencies;
}

void LayerActivations::reserve(const ModelConfig& config, const ParameterLayout& layout,
                               int64_t num_rows) {
  input_TD.reserve(num_rows * config.hidden_size);
  rstd_T.reserve(num_rows);
  qkv.reserve(num_rows * layout.qkv_columns());
  if (config.qk_norm) {
    raw_qk.reserve(num_rows * (layout.q_columns + layout.kv_columns));
    qk_rstd.reserve(num_rows * (config.num_heads + config.num_kv_heads));
  }
  attention.reserve(num_rows * layout.q_columns);
  lse_TH.reserve(num_rows * config.num_heads);
  middle_TD.reserve(num_rows * config.hidden_size);
  middle_rstd_T.reserve(num_rows);
  gate_up.reserve(num_rows * 2 * layout.mlp_columns);
}

Transformer::Transformer(ModelConfig config)
    : config_(std::move(config)),
      layout_(parameter_layout(config_)),
      parameters_(layout_.size),
      rope_table_(rope_frequencies(config_)) {}

Result<std::unique_ptr<Transformer>> Transformer::load(const std::string& dir) {
  Result<CheckpointReader> checkpoint = CheckpointReader::open(dir);
  if (!checkpoint.ok()) return checkpoint.status();
  auto transformer = std::make_unique<Transformer>(checkpoint->config());
  GRADUS_RETURN_IF_ERROR(
      load_parameters(*checkpoint, transformer->layout(), transformer->parameters()));
  return transformer;
}

std::unique_ptr<Transformer> Transformer::with_score_head(const Transformer& source,
                                                          uint64_t seed) {
  GRADUS_CHECK(source.config().head == Head::kLanguage, "the model has a score head");
  auto scorer = std::make_unique<Transformer>(model::with_score_head(source.config()));
  // The head stands last in both layouts.
  std::copy_n(source.parameters(), scorer->layout().head, scorer->parameters());
  init_score_head(scorer->config(), scorer->layout(), seed, scorer->parameters());
  return scorer;
}

void Transformer::set_adapter(std::unique_ptr<LoraAdapter> adapter) {
  adapter_ = std::move(adapter);
  adapter_->merge(parameters());
}

TrainableWeights Transformer::trainable() {
  if (adapter_ == nullptr) return {layout_, parameters()};
  return {adapter_->layout(), adapter_->values()};
}

void Transformer::trainable_changed() {
  if (adapter_ != nullptr) adapter_->merge(parameters());
}

int64_t Transformer::padded_vocab_size() const { return kernels::padded(config_.vocab_size); }

int64_t Transformer::padded_head_rows() const { return kernels::padded(config_.head_rows()); }

float Transformer::attention_scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
}

void Transformer::embed(std::span<const int32_t> token_ids, float* x_TD) const {
  kernels::embedding_gather(parameters_.data() + layout_.embedding, token_ids.data(),
                            static_cast<int64_t>(token_ids.size()), config_.hidden_size, x_TD,
                            config_.hidden_size);
}

void Transformer::final_norm(const float* x_TD, int64_t num_rows, float* hidden_TD,
                             float* rstd_T) const {
  kernels::rms_norm({.x_MD = x_TD,
                     .x_stride = config_.hidden_size,
                     .weight_D = parameters_.data() + layout_.final_norm,
                     .y_MD = hidden_TD,
                     .y_stride = config_.hidden_size,
                     .rstd_M = rstd_T,
                     .m = num_rows,
                     .d = config_.hidden_size,
                     .eps = static_cast<float>(config_.rms_norm_eps)});
}

void Transformer::head(const float* hidden_RD, int64_t num_rows, float* logits_RV) const {
  kernels::gemm_forward({.x_MK = hidden_RD,
                         .x_stride = config_.hidden_size,
                         .w_packed = parameters_.data() + layout_.head,
                         .y_MN = logits_RV,
                         .y_stride = padded_head_rows(),
                         .m = num_rows,
                         .n = config_.head_rows(),
                         .k = config_.hidden_size});
}

void Transformer::layer_forward(int64_t layer, const ForwardRows& rows,
                                const kernels::KvPageLayout& page_layout, float* pages, float* x_TD,
                                LayerActivations& activations) {
  const LayerPlaces& places = layout_.layers[static_cast<size_t>(layer)];
  const float* weights = parameters_.data();
  const auto weight_at = [&](int64_t place) { return place < 0 ? nullptr : weights + place; };
  const int64_t num_rows = static_cast<int64_t>(rows.token_ids.size());
  const int64_t width = config_.hidden_size, head_dim = config_.head_dim;
  const int64_t qkv_columns = layout_.qkv_columns(), q_columns = layout_.q_columns;
  const int64_t kv_columns = layout_.kv_columns, mlp_columns = layout_.mlp_columns;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  activations.reserve(config_, layout_, num_rows);
  normed_.reserve(num_rows * width);
  projected_.reserve(num_rows * kernels::padded(width));
  inner_.reserve(num_rows * mlp_columns);
  const size_t stream_bytes = static_cast<size_t>(num_rows * width) * sizeof(float);

  std::memcpy(activations.input_TD.data(), x_TD, stream_bytes);
  kernels::rms_norm({.x_MD = x_TD,
                     .x_stride = width,
                     .weight_D = weights + places.attention_norm,
                     .y_MD = normed_.data(),
                     .y_stride = width,
                     .rstd_M = activations.rstd_T.data(),
                     .m = num_rows,
                     .d = width,
                     .eps = eps});
  float* qkv = activations.qkv.data();
  kernels::gemm_forward({.x_MK = normed_.data(),
                         .x_stride = width,
                         .w_packed = weights + places.qkv,
                         .bias_N = weight_at(places.qkv_bias),
                         .y_MN = qkv,
                         .y_stride = qkv_columns,
                         .m = num_rows,
                         .n = qkv_columns,
                         .k = width});
  float* k = qkv + q_columns;
  if (config_.qk_norm) {
    const int64_t raw_columns = q_columns + kv_columns;
    for (int64_t t = 0; t < num_rows; ++t) {
      std::memcpy(activations.raw_qk.data() + t * raw_columns, qkv + t * qkv_columns,
                  static_cast<size_t>(raw_columns) * sizeof(float));
    }
    const int64_t rstd_stride = config_.num_heads + config_.num_kv_heads;
    norm_heads(weights + places.q_norm, num_rows, config_.num_heads, head_dim, eps, qkv,
               qkv_columns, activations.qk_rstd.data(), rstd_stride);
    norm_heads(weights + places.k_norm, num_rows, config_.num_kv_heads, head_dim, eps, k,
               qkv_columns, activations.qk_rstd.data() + config_.num_heads, rstd_stride);
  }
  kernels::RopeParams rope{.x_THK = qkv,
                           .x_stride = qkv_columns,
                           .positions_T = rows.positions.data(),
                           .t = num_rows,
                           .num_heads = config_.num_heads,
                           .head_width = head_dim,
                           .cosines = rope_table_.cosines(),
                           .sines = rope_table_.sines()};
  kernels::rope(rope);
  rope.x_THK = k;
  rope.num_heads = config_.num_kv_heads;
  kernels::rope(rope);
  kernels::KvWriteParams write{.layout = page_layout,
                               .pages = pages,
                               .k_TGK = k,
                               .v_TGK = k + kv_columns,
                               .kv_stride = qkv_columns,
                               .runs = rows.extra_writes.data(),
                               .num_runs = static_cast<int64_t>(rows.extra_writes.size())};
  kernels::kv_write(write);
  write.runs = rows.runs.data();
  write.num_runs = static_cast<int64_t>(rows.runs.size());
  kernels::kv_write(write);
  kernels::attention_forward({.layout = page_layout,
                              .pages = pages,
                              .q_THK = qkv,
                              .q_stride = qkv_columns,
                              .out_THK = activations.attention.data(),
                              .out_stride = q_columns,
                              .lse_TH = activations.lse_TH.data(),
                              .num_heads = config_.num_heads,
                              .scale = attention_scale(),
                              .runs = rows.runs.data(),
                              .num_runs = static_cast<int64_t>(rows.runs.size())});
  // Adds a product's padded rows to the residual stream.
  const int64_t projected_stride = kernels::padded(width);
  const auto add_projected = [&] {
    if (projected_stride == width) {
      kernels::add_in_place(x_TD, projected_.data(), num_rows * width);
    } else {
      for (int64_t t = 0; t < num_rows; ++t) {
        kernels::add_in_place(x_TD + t * width, projected_.data() + t * projected_stride, width);
      }
    }
  };
  kernels::gemm_forward({.x_MK = activations.attention.data(),
                         .x_stride = q_columns,
                         .w_packed = weights + places.output,
                         .bias_N = weight_at(places.output_bias),
                         .y_MN = projected_.data(),
                         .y_stride = projected_stride,
                         .m = num_rows,
                         .n = width,
                         .k = config_.num_heads * head_dim});
  add_projected();
  std::memcpy(activations.middle_TD.data(), x_TD, stream_bytes);
  kernels::rms_norm({.x_MD = x_TD,
                     .x_stride = width,
                     .weight_D = weights + places.mlp_norm,
                     .y_MD = normed_.data(),
                     .y_stride = width,
                     .rstd_M = activations.middle_rstd_T.data(),
                     .m = num_rows,
                     .d = width,
                     .eps = eps});
  kernels::gemm_forward({.x_MK = normed_.data(),
                         .x_stride = width,
                         .w_packed = weights + places.gate_up,
                         .bias_N = weight_at(places.gate_up_bias),
                         .y_MN = activations.gate_up.data(),
                         .y_stride = 2 * mlp_columns,
                         .m = num_rows,
                         .n = 2 * mlp_columns,
                         .k = width});
  kernels::swiglu({.gate_up = activations.gate_up.data(),
                   .gate_up_stride = 2 * mlp_columns,
                   .up_offset = mlp_columns,
                   .y_MI = inner_.data(),
                   .y_stride = mlp_columns,
                   .m = num_rows,
                   .i = config_.intermediate_size});
  kernels::gemm_forward({.x_MK = inner_.data(),
                         .x_stride = mlp_columns,
                         .w_packed = weights + places.down,
                         .bias_N = weight_at(places.down_bias),
                         .y_MN = projected_.data(),
                         .y_stride = projected_stride,
                         .m = num_rows,
                         .n = width,
                         .k = config_.intermediate_size});
  add_projected();
}

void Transformer::forward(const ForwardRows& rows, KvCache& cache, float* hidden_TD) {
  const int64_t num_rows = static_cast<int64_t>(rows.token_ids.size());
  if (num_rows == 0) return;
  rope_table_.reserve(*std::max_element(rows.positions.begin(), rows.positions.end()) + 1);
  stream_.reserve(num_rows * config_.hidden_size);
  embed(rows.token_ids, stream_.data());
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    layer_forward(i, rows, cache.layout(), cache.layer(i), stream_.data(), scratch_);
  }
  final_norm(stream_.data(), num_rows, hidden_TD, nullptr);
}

}  // namespace gradus::model
