// SPDX-License-Identifier: Apache-2.0
#include "model/training_pass.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/parallel.h"
#include "kernels/activation.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"

namespace gradus::model {
namespace {

// Rows of logits in memory at a time: enough to use the head's weights well (128 rows are 25 MB at
// V = 49152).
constexpr int64_t kHeadRows = 128;

int64_t pages_of(int64_t num_positions) {
  return (num_positions + kernels::kPageTokens - 1) / kernels::kPageTokens;
}

// Backward of the norm of each head, in place over dy. The heads of all rows become rows of one
// call, token by token: the weight's gradient is then one chain in token order, which micro-batches
// may cut.
void norm_heads_backward(int64_t num_rows, int64_t num_heads, int64_t head_dim, float* dy,
                         int64_t dy_stride, const float* x, int64_t x_stride, const float* rstd,
                         int64_t rstd_stride, const float* weight, float* dweight) {
  const size_t head_bytes = static_cast<size_t>(head_dim) * sizeof(float);
  const size_t num_head_rows = static_cast<size_t>(num_rows * num_heads);
  std::vector<float> dy_rows(num_head_rows * static_cast<size_t>(head_dim)), x_rows(dy_rows.size());
  std::vector<float> rstd_rows(num_head_rows);
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t h = 0; h < num_heads; ++h) {
      const int64_t row = t * num_heads + h;
      std::memcpy(&dy_rows[static_cast<size_t>(row * head_dim)], dy + t * dy_stride + h * head_dim,
                  head_bytes);
      std::memcpy(&x_rows[static_cast<size_t>(row * head_dim)], x + t * x_stride + h * head_dim,
                  head_bytes);
      rstd_rows[static_cast<size_t>(row)] = rstd[t * rstd_stride + h];
    }
  }
  kernels::rms_norm_backward({.dy_MD = dy_rows.data(),
                              .dy_stride = head_dim,
                              .x_MD = x_rows.data(),
                              .x_stride = head_dim,
                              .weight_D = weight,
                              .rstd_M = rstd_rows.data(),
                              .dx_MD = dy_rows.data(),
                              .dx_stride = head_dim,
                              .dweight_D = dweight,
                              .m = num_rows * num_heads,
                              .d = head_dim});
  for (int64_t t = 0; t < num_rows; ++t) {
    std::memcpy(dy + t * dy_stride, &dy_rows[static_cast<size_t>(t * num_heads * head_dim)],
                head_bytes * static_cast<size_t>(num_heads));
  }
}

}  // namespace

void Gradients::clear() {
  buffer.fill_zero();
  embedding_tokens.clear();
  embedding_rows.clear();
}

void Gradients::finish(const ParameterLayout& layout, int64_t hidden_size) {
  kernels::embedding_scatter_add(buffer.data() + layout.embedding, embedding_tokens.data(),
                                 embedding_rows.data(), hidden_size,
                                 static_cast<int64_t>(embedding_tokens.size()), hidden_size);
  if (scale != 1) {
    parallel_for(num_scaled, int64_t{1} << 15, [this](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) buffer.data()[i] *= scale;
    });
  }
  embedding_tokens.clear();
  embedding_rows.clear();
}

TrainingPass::TrainingPass(Transformer& transformer, bool gradient_checkpointing)
    : TrainingPass(transformer, gradient_checkpointing, std::make_shared<TrainingScratch>()) {
  shares_scratch_ = false;
}

TrainingPass::TrainingPass(Transformer& transformer, bool gradient_checkpointing,
                           std::shared_ptr<TrainingScratch> scratch)
    : transformer_(transformer),
      gradient_checkpointing_(gradient_checkpointing),
      scratch_(std::move(scratch)),
      shares_scratch_(true) {
  const size_t num_layers = static_cast<size_t>(transformer.config().num_layers);
  pages_.resize(gradient_checkpointing ? 1 : num_layers);
  activations_.resize(gradient_checkpointing ? 1 : num_layers);
  layer_inputs_.resize(gradient_checkpointing ? num_layers : 0);
}

// Where a layer's activations are, as long as they are kept.
LayerActivations& TrainingPass::activations_of(int64_t layer) {
  if (keeps_layers()) return activations_[static_cast<size_t>(layer)];
  return shares_scratch_ ? scratch_->activations : activations_[0];
}

AlignedBuffer& TrainingPass::pages_of_layer(int64_t layer) {
  if (keeps_layers()) return pages_[static_cast<size_t>(layer)];
  return shares_scratch_ ? scratch_->pages : pages_[0];
}

// Each prompt gets its own pages; a response shares the full ones and goes on in pages of its own,
// the first of which also receives the prompt's tail.
void TrainingPass::plan_pages(const data::Pack& pack) {
  num_pages_ = 0;
  page_tables_.clear();
  std::vector<int64_t> table_begin;
  for (const data::PackRun& run : pack.runs) {
    table_begin.push_back(static_cast<int64_t>(page_tables_.size()));
    const int64_t shared = run.prompt_run < 0 ? 0 : run.first_position / kernels::kPageTokens;
    for (int64_t i = 0; i < shared; ++i) {
      page_tables_.push_back(
          page_tables_[static_cast<size_t>(table_begin[static_cast<size_t>(run.prompt_run)] + i)]);
    }
    for (int64_t i = shared; i < pages_of(run.first_position + run.num_rows); ++i) {
      page_tables_.push_back(static_cast<int32_t>(num_pages_++));
    }
  }
  runs_.clear();
  extra_writes_.clear();
  key_rows_.clear();
  key_rows_.reserve(2 * pack.runs.size());  // backward_runs_ point into it
  backward_runs_.clear();
  for (size_t i = 0; i < pack.runs.size(); ++i) {
    const data::PackRun& run = pack.runs[i];
    const int32_t* table = page_tables_.data() + table_begin[i];
    runs_.push_back({run.row_begin, run.num_rows, run.first_position, table});
    const kernels::KeyRows* keys = key_rows_.data() + key_rows_.size();
    if (run.prompt_run >= 0) {
      const data::PackRun& prompt = pack.runs[static_cast<size_t>(run.prompt_run)];
      const int64_t tail = prompt.num_rows % kernels::kPageTokens;
      if (tail > 0) {
        extra_writes_.push_back(
            {prompt.row_begin + prompt.num_rows - tail, tail, prompt.num_rows - tail, table});
      }
      key_rows_.push_back({0, prompt.row_begin, prompt.num_rows});
    }
    key_rows_.push_back({run.first_position, run.row_begin, run.num_rows});
    backward_runs_.push_back({runs_.back(), keys, run.prompt_run >= 0 ? 2 : 1});
  }
}

ForwardRows TrainingPass::forward_rows() const {
  return {pack_->token_ids, pack_->positions, runs_, extra_writes_};
}

void TrainingPass::forward(const data::Pack& pack, float temperature, bool keep_for_backward) {
  begin(pack, temperature, keep_for_backward);
  for (int64_t i = 0; i < transformer_.config().num_layers; ++i) forward_layer(i);
  finish_forward();
}

void TrainingPass::begin(const data::Pack& pack, float temperature, bool keep_for_backward) {
  const int64_t num_rows = pack.num_rows(), width = transformer_.config().hidden_size;
  const int64_t num_targets = static_cast<int64_t>(pack.targets.size());
  pack_ = &pack;
  temperature_ = temperature;
  keep_for_backward_ = keep_for_backward;
  plan_pages(pack);
  logprobs_.assign(static_cast<size_t>(num_targets), 0);
  entropies_.assign(static_cast<size_t>(num_targets), 0);
  stats_.resize(static_cast<size_t>(num_targets));
  if (num_rows == 0) return;
  transformer_.reserve_positions(*std::max_element(pack.positions.begin(), pack.positions.end()) +
                                 1);
  stream_.reserve(num_rows * width);
  hidden_.reserve(num_rows * width);
  final_rstd_.reserve(num_rows);
  transformer_.embed(pack.token_ids, stream_.data());
}

void TrainingPass::forward_layer(int64_t layer) {
  const ModelConfig& config = transformer_.config();
  const int64_t num_rows = pack_->num_rows(), width = config.hidden_size;
  if (num_rows == 0) return;
  const kernels::KvPageLayout page_layout{config.num_kv_heads, config.head_dim};
  AlignedBuffer& pages = pages_of_layer(layer);
  pages.reserve(num_pages_ * page_layout.page_size());
  if (keep_for_backward_ && gradient_checkpointing_) {
    AlignedBuffer& input = layer_inputs_[static_cast<size_t>(layer)];
    input.reserve(num_rows * width);
    std::memcpy(input.data(), stream_.data(),
                static_cast<size_t>(num_rows * width) * sizeof(float));
  }
  transformer_.layer_forward(layer, forward_rows(), page_layout, pages.data(), stream_.data(),
                             activations_of(layer));
}

void TrainingPass::finish_forward() {
  const data::Pack& pack = *pack_;
  const int64_t num_rows = pack.num_rows(), width = transformer_.config().hidden_size;
  const int64_t num_targets = static_cast<int64_t>(pack.targets.size());
  if (num_rows == 0) return;
  transformer_.final_norm(stream_.data(), num_rows, hidden_.data(), final_rstd_.data());
  const int64_t chunk_rows = std::min(kHeadRows, num_targets);
  scratch_->gathered.reserve(chunk_rows * width);
  scratch_->logits.reserve(chunk_rows * transformer_.padded_head_rows());
  for (int64_t first = 0; first < num_targets; first += kHeadRows) {
    const int64_t count = std::min(kHeadRows, num_targets - first);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(scratch_->gathered.data() + i * width,
                  hidden_.data() + pack.targets[static_cast<size_t>(first + i)].row * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
    transformer_.head(scratch_->gathered.data(), count, scratch_->logits.data());
    read_head(first, count, temperature_);
  }
}

// What the head says of targets first .. first + count - 1, whose rows are in scratch_->logits.
void TrainingPass::read_head(int64_t first, int64_t count, float temperature) {
  const ModelConfig& config = transformer_.config();
  const int64_t columns = transformer_.padded_head_rows();
  if (config.head == Head::kScore) {
    for (int64_t i = 0; i < count; ++i) {
      logprobs_[static_cast<size_t>(first + i)] = scratch_->logits.data()[i * columns];
    }
    return;
  }
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = scratch_->logits.data() + i * columns;
      const size_t target = static_cast<size_t>(first + i);
      stats_[target] = kernels::logit_stats(row, config.vocab_size, temperature);
      logprobs_[target] =
          kernels::token_logprob(stats_[target], row[pack_->targets[target].token], temperature);
      entropies_[target] = kernels::entropy(stats_[target]);
    }
  });
}

void TrainingPass::backward(std::span<const float> dlogprobs, std::span<const float> dentropies,
                            Gradients& gradients) {
  if (!begin_backward(dlogprobs, dentropies)) return;
  const ParameterLayout& layout = transformer_.layout();
  const LoraAdapter* adapter = transformer_.adapter();
  float* grads = gradients.buffer.data();
  // Null where the head is not trained.
  float* head_gradient = grads + layout.head;
  if (adapter != nullptr) {
    const int64_t head = adapter->layout().head;
    head_gradient = head < 0 ? nullptr : grads + head;
  }
  head_backward(head_gradient, true);
  final_norm_backward(adapter != nullptr ? nullptr : grads + layout.final_norm);
  float* dx = dhidden_.data();
  for (int64_t i = transformer_.config().num_layers - 1; i >= 0; --i) {
    layer_backward(i, dx, gradients);
  }
  if (adapter != nullptr) return;  // the embedding is not trained
  gradients.embedding_tokens.insert(gradients.embedding_tokens.end(), pack_->token_ids.begin(),
                                    pack_->token_ids.end());
  gradients.embedding_rows.insert(gradients.embedding_rows.end(), dx,
                                  dx + pack_->num_rows() * transformer_.config().hidden_size);
}

bool TrainingPass::begin_backward(std::span<const float> dlogprobs,
                                  std::span<const float> dentropies) {
  GRADUS_CHECK(
      dlogprobs.size() == pack_->targets.size() && dentropies.size() == pack_->targets.size(),
      "one gradient per target");
  // Targets without gradient add exact zeros: they are left out.
  active_.clear();
  for (size_t i = 0; i < dlogprobs.size(); ++i) {
    if (dlogprobs[i] != 0 || dentropies[i] != 0) active_.push_back(static_cast<int64_t>(i));
  }
  dlogprobs_.assign(dlogprobs.begin(), dlogprobs.end());
  dentropies_.assign(dentropies.begin(), dentropies.end());
  return !active_.empty();
}

void TrainingPass::backward_head(Gradients& gradients) {
  const ParameterLayout& layout = transformer_.layout();
  const bool is_tied = layout.head == layout.embedding;
  head_backward(is_tied ? nullptr : gradients.buffer.data() + layout.head, true);
  final_norm_backward(gradients.buffer.data() + layout.final_norm);
}

void TrainingPass::backward_layer(int64_t layer, Gradients& gradients) {
  layer_backward(layer, dhidden_.data(), gradients);
}

void TrainingPass::backward_tied_head(Gradients& gradients) {
  head_backward(gradients.buffer.data() + transformer_.layout().head, false);
}

void TrainingPass::backward_embedding(Gradients& gradients) {
  const int64_t width = transformer_.config().hidden_size;
  kernels::embedding_scatter_add(gradients.buffer.data() + transformer_.layout().embedding,
                                 pack_->token_ids.data(), dhidden_.data(), width, pack_->num_rows(),
                                 width);
}

// Gradients of the active targets by the head's weights, unless null, and by its inputs.
void TrainingPass::head_backward(float* head_gradient, bool with_inputs) {
  const data::Pack& pack = *pack_;
  const ModelConfig& config = transformer_.config();
  const int64_t num_rows = pack.num_rows(), width = config.hidden_size;
  const int64_t head_rows = config.head_rows(), columns = transformer_.padded_head_rows();
  float* logits = scratch_->logits.data();
  float* gathered = scratch_->gathered.data();
  const int64_t num_active = static_cast<int64_t>(active_.size());
  if (with_inputs) {
    dhidden_.reserve(num_rows * width);
    std::memset(dhidden_.data(), 0, static_cast<size_t>(num_rows * width) * sizeof(float));
    scratch_->dgathered.reserve(std::min(kHeadRows, num_active) * width);
  }
  for (int64_t first = 0; first < num_active; first += kHeadRows) {
    const int64_t count = std::min(kHeadRows, num_active - first);
    const auto target_at = [&](int64_t i) { return active_[static_cast<size_t>(first + i)]; };
    const auto row_at = [&](int64_t i) {
      return pack.targets[static_cast<size_t>(target_at(i))].row;
    };
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(gathered + i * width, hidden_.data() + row_at(i) * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
    if (config.head == Head::kScore) {
      std::memset(logits, 0, static_cast<size_t>(count * columns) * sizeof(float));
      for (int64_t i = 0; i < count; ++i) {
        logits[i * columns] = dlogprobs_[static_cast<size_t>(target_at(i))];
      }
    } else {
      transformer_.head(gathered, count, logits);
      parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const size_t target = static_cast<size_t>(target_at(i));
          kernels::logprob_backward({.logits_V = logits + i * columns,
                                     .v = head_rows,
                                     .padded_v = columns,
                                     .stats = stats_[target],
                                     .temperature = temperature_,
                                     .token = pack.targets[target].token,
                                     .dlogprob = dlogprobs_[target],
                                     .dentropy = dentropies_[target]});
        }
      });
    }
    if (head_gradient != nullptr) {
      kernels::gemm_backward_weight({.dy_MN = logits,
                                     .dy_stride = columns,
                                     .x_MK = gathered,
                                     .x_stride = width,
                                     .dw_packed = head_gradient,
                                     .m = count,
                                     .n = head_rows,
                                     .k = width,
                                     .accumulate = true});
    }
    if (!with_inputs) continue;
    float* dgathered = scratch_->dgathered.data();
    kernels::gemm_backward_input(
        {.dy_MN = logits,
         .dy_stride = columns,
         .w_packed = transformer_.parameters() + transformer_.layout().head,
         .dx_MK = dgathered,
         .dx_stride = width,
         .m = count,
         .n = head_rows,
         .k = width});
    for (int64_t i = 0; i < count; ++i) {
      kernels::add_in_place(dhidden_.data() + row_at(i) * width, dgathered + i * width, width);
    }
  }
}

void TrainingPass::final_norm_backward(float* dweight) {
  const int64_t width = transformer_.config().hidden_size;
  float* dx = dhidden_.data();
  kernels::rms_norm_backward(
      {.dy_MD = dx,
       .dy_stride = width,
       .x_MD = stream_.data(),
       .x_stride = width,
       .weight_D = transformer_.parameters() + transformer_.layout().final_norm,
       .rstd_M = final_rstd_.data(),
       .dx_MD = dx,
       .dx_stride = width,
       .dweight_D = dweight,
       .m = pack_->num_rows(),
       .d = width});
}

// dw += dy^T x and db += column sums of dy for a linear layer, or what the adapter makes of them.
void TrainingPass::linear_gradient(int64_t weight, int64_t bias, const float* dy, int64_t dy_stride,
                                   const float* x, int64_t x_stride, int64_t n, int64_t k,
                                   Gradients& gradients) {
  const int64_t num_rows = pack_->num_rows();
  float* grads = gradients.buffer.data();
  if (LoraAdapter* adapter = transformer_.adapter(); adapter != nullptr) {
    adapter->add_gradient(weight, dy, dy_stride, x, x_stride, num_rows, grads);
    return;
  }
  kernels::gemm_backward_weight({.dy_MN = dy,
                                 .dy_stride = dy_stride,
                                 .x_MK = x,
                                 .x_stride = x_stride,
                                 .dw_packed = grads + weight,
                                 .m = num_rows,
                                 .n = n,
                                 .k = k,
                                 .accumulate = true});
  if (bias >= 0) kernels::column_sums(dy, dy_stride, num_rows, n, grads + bias);
}

void TrainingPass::layer_backward(int64_t layer, float* dx_TD, Gradients& gradients) {
  const data::Pack& pack = *pack_;
  const ModelConfig& config = transformer_.config();
  const ParameterLayout& layout = transformer_.layout();
  const LayerPlaces& places = layout.layers[static_cast<size_t>(layer)];
  const float* weights = transformer_.parameters();
  // Norms are trained with all weights, not with an adapter.
  const auto norm_gradient = [&](int64_t place) {
    return transformer_.adapter() != nullptr ? nullptr : gradients.buffer.data() + place;
  };
  const int64_t num_rows = pack.num_rows(), width = config.hidden_size;
  const int64_t head_dim = config.head_dim, mlp_columns = layout.mlp_columns;
  const int64_t q_columns = layout.q_columns, kv_columns = layout.kv_columns;
  const int64_t qkv_columns = layout.qkv_columns();
  const float eps = static_cast<float>(config.rms_norm_eps);
  const kernels::KvPageLayout page_layout{config.num_kv_heads, head_dim};
  LayerActivations& saved = activations_of(layer);
  AlignedBuffer& pages = pages_of_layer(layer);
  if (gradient_checkpointing_) {
    pages.reserve(num_pages_ * page_layout.page_size());
    scratch_->recompute.reserve(num_rows * width);
    std::memcpy(scratch_->recompute.data(), layer_inputs_[static_cast<size_t>(layer)].data(),
                static_cast<size_t>(num_rows * width) * sizeof(float));
    transformer_.layer_forward(layer, forward_rows(), page_layout, pages.data(),
                               scratch_->recompute.data(), saved);
  }
  scratch_->normed.reserve(num_rows * width);
  scratch_->dnormed.reserve(num_rows * width);
  scratch_->inner.reserve(num_rows * mlp_columns);
  scratch_->dinner.reserve(num_rows * mlp_columns);
  scratch_->dattention.reserve(num_rows * q_columns);
  scratch_->dqkv.reserve(num_rows * qkv_columns);

  // Gradients of one linear layer: of its weights, and dx = dy w.
  const auto linear = [&](const float* dy, int64_t dy_stride, const float* x, int64_t x_stride,
                          int64_t weight, int64_t bias, int64_t n, int64_t k, float* dx,
                          int64_t dx_stride) {
    linear_gradient(weight, bias, dy, dy_stride, x, x_stride, n, k, gradients);
    kernels::gemm_backward_input({.dy_MN = dy,
                                  .dy_stride = dy_stride,
                                  .w_packed = weights + weight,
                                  .dx_MK = dx,
                                  .dx_stride = dx_stride,
                                  .m = num_rows,
                                  .n = n,
                                  .k = k});
  };
  // The norm's output is computed again (a pass over the row) and its gradient joins the residual
  // stream.
  const auto norm_again = [&](const float* x, int64_t weight) {
    kernels::rms_norm({.x_MD = x,
                       .x_stride = width,
                       .weight_D = weights + weight,
                       .y_MD = scratch_->normed.data(),
                       .y_stride = width,
                       .m = num_rows,
                       .d = width,
                       .eps = eps});
  };
  const auto norm_backward = [&](const float* x, const float* rstd, int64_t weight) {
    kernels::rms_norm_backward({.dy_MD = scratch_->dnormed.data(),
                                .dy_stride = width,
                                .x_MD = x,
                                .x_stride = width,
                                .weight_D = weights + weight,
                                .rstd_M = rstd,
                                .dx_MD = dx_TD,
                                .dx_stride = width,
                                .accumulate = true,
                                .dweight_D = norm_gradient(weight),
                                .m = num_rows,
                                .d = width});
  };

  kernels::swiglu({.gate_up = saved.gate_up.data(),
                   .gate_up_stride = 2 * mlp_columns,
                   .up_offset = mlp_columns,
                   .y_MI = scratch_->inner.data(),
                   .y_stride = mlp_columns,
                   .m = num_rows,
                   .i = config.intermediate_size});
  linear(dx_TD, width, scratch_->inner.data(), mlp_columns, places.down, places.down_bias, width,
         config.intermediate_size, scratch_->dinner.data(), mlp_columns);
  kernels::swiglu_backward({.gate_up = saved.gate_up.data(),
                            .gate_up_stride = 2 * mlp_columns,
                            .up_offset = mlp_columns,
                            .dy_MI = scratch_->dinner.data(),
                            .dy_stride = mlp_columns,
                            .m = num_rows,
                            .i = config.intermediate_size});
  norm_again(saved.middle_TD.data(), places.mlp_norm);
  linear(saved.gate_up.data(), 2 * mlp_columns, scratch_->normed.data(), width, places.gate_up,
         places.gate_up_bias, 2 * mlp_columns, width, scratch_->dnormed.data(), width);
  norm_backward(saved.middle_TD.data(), saved.middle_rstd_T.data(), places.mlp_norm);

  linear(dx_TD, width, saved.attention.data(), q_columns, places.output, places.output_bias, width,
         config.num_heads * head_dim, scratch_->dattention.data(), q_columns);
  float* dqkv = scratch_->dqkv.data();
  std::memset(dqkv, 0, static_cast<size_t>(num_rows * qkv_columns) * sizeof(float));
  float* dk = dqkv + q_columns;
  kernels::attention_backward({.layout = page_layout,
                               .pages = pages.data(),
                               .q_THK = saved.qkv.data(),
                               .q_stride = qkv_columns,
                               .out_THK = saved.attention.data(),
                               .dout_THK = scratch_->dattention.data(),
                               .out_stride = q_columns,
                               .lse_TH = saved.lse_TH.data(),
                               .num_heads = config.num_heads,
                               .scale = transformer_.attention_scale(),
                               .dq_THK = dqkv,
                               .dk_TGK = dk,
                               .dv_TGK = dk + kv_columns,
                               .dq_stride = qkv_columns,
                               .runs = backward_runs_.data(),
                               .group_begin = pack.group_begin.data(),
                               .num_groups = static_cast<int64_t>(pack.group_begin.size()) - 1});
  kernels::RopeParams rope{.x_THK = dqkv,
                           .x_stride = qkv_columns,
                           .positions_T = pack.positions.data(),
                           .t = num_rows,
                           .num_heads = config.num_heads,
                           .head_width = head_dim,
                           .cosines = transformer_.rope_table().cosines(),
                           .sines = transformer_.rope_table().sines(),
                           .inverse = true};
  kernels::rope(rope);
  rope.x_THK = dk;
  rope.num_heads = config.num_kv_heads;
  kernels::rope(rope);
  if (config.qk_norm) {
    const int64_t raw_columns = q_columns + kv_columns;
    const int64_t rstd_columns = config.num_heads + config.num_kv_heads;
    norm_heads_backward(num_rows, config.num_heads, head_dim, dqkv, qkv_columns,
                        saved.raw_qk.data(), raw_columns, saved.qk_rstd.data(), rstd_columns,
                        weights + places.q_norm, norm_gradient(places.q_norm));
    norm_heads_backward(num_rows, config.num_kv_heads, head_dim, dk, qkv_columns,
                        saved.raw_qk.data() + q_columns, raw_columns,
                        saved.qk_rstd.data() + config.num_heads, rstd_columns,
                        weights + places.k_norm, norm_gradient(places.k_norm));
  }
  norm_again(saved.input_TD.data(), places.attention_norm);
  if (layer == 0 && transformer_.adapter() != nullptr) {  // nothing below it is trained
    linear_gradient(places.qkv, -1, dqkv, qkv_columns, scratch_->normed.data(), width, qkv_columns,
                    width, gradients);
    return;
  }
  linear(dqkv, qkv_columns, scratch_->normed.data(), width, places.qkv, places.qkv_bias,
         qkv_columns, width, scratch_->dnormed.data(), width);
  norm_backward(saved.input_TD.data(), saved.rstd_T.data(), places.attention_norm);
}

namespace {

// Floats a row that one layer keeps, its pages included (half a page of slack per sequence left
// out).
int64_t layer_row_floats(const ModelConfig& config, const ParameterLayout& layout) {
  const kernels::KvPageLayout pages{config.num_kv_heads, config.head_dim};
  const int64_t raw_qk = config.qk_norm ? layout.q_columns + layout.kv_columns : 0;
  return 2 * config.hidden_size + 2 + layout.qkv_columns() + raw_qk + layout.q_columns +
         config.num_heads + 2 * layout.mlp_columns + pages.page_size() / kernels::kPageTokens;
}

}  // namespace

int64_t TrainingPass::planned_bytes(const ModelConfig& config, int64_t num_rows,
                                    bool gradient_checkpointing, bool keep_for_backward) {
  const ParameterLayout layout = parameter_layout(config);
  const int64_t slots = gradient_checkpointing || !keep_for_backward ? 1 : config.num_layers;
  const int64_t inputs =
      gradient_checkpointing && keep_for_backward ? config.num_layers * config.hidden_size : 0;
  const int64_t shared =
      8 * config.hidden_size + layout.qkv_columns() + layout.q_columns + 3 * layout.mlp_columns;
  const int64_t head = kHeadRows * (kernels::padded(config.head_rows()) + 2 * config.hidden_size);
  return (num_rows * (slots * layer_row_floats(config, layout) + inputs + shared) + head) *
         static_cast<int64_t>(sizeof(float));
}

int64_t TrainingPass::kept_bytes(const ModelConfig& config, int64_t num_rows,
                                 bool gradient_checkpointing) {
  const int64_t of_layers = gradient_checkpointing
                                ? config.hidden_size
                                : layer_row_floats(config, parameter_layout(config));
  // Beside them the residual stream, the last hidden states and their gradient.
  return num_rows * (config.num_layers * of_layers + 3 * config.hidden_size) *
         static_cast<int64_t>(sizeof(float));
}

}  // namespace gradus::model
