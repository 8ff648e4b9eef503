// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/status.h"
#include "kernels/attention.h"
#include "kernels/rope.h"
#include "model/kv_cache.h"
#include "model/lora.h"
#include "model/model_config.h"
#include "model/parameters.h"

namespace gradus::model {

// Rotary frequencies theta^(-2i/K) [K/2] with the config's scaling, rounded to float as Hugging
// Face keeps them.
std::vector<double> rope_frequencies(const ModelConfig& config);

// Rows of one forward pass, any mix of sequences: prefill chunks, single decoded tokens, packed
// training sequences. Each row's result is a function of its sequence up to it and of the weights
// alone, bit for bit (docs/numerics.md). Keys and values are written to the runs' pages.
struct ForwardRows {
  std::span<const int32_t> token_ids;           // [T], each in [0, V)
  std::span<const int32_t> positions;           // [T]
  std::span<const kernels::AttentionRun> runs;  // cover all rows
  // Rows whose keys and values go to further pages before attention: a prompt's tail, into the page
  // that a response goes on in.
  std::span<const kernels::AttentionRun> extra_writes;
};

// What a layer keeps of its forward for its backward; T rows.
struct LayerActivations {
  AlignedBuffer input_TD;   // residual stream before the layer
  AlignedBuffer rstd_T;     // of the attention norm
  AlignedBuffer qkv;        // [T, qkv_columns], rotated
  AlignedBuffer raw_qk;     // [T, q_columns + kv_columns] before norm and rotation, if qk_norm
  AlignedBuffer qk_rstd;    // [T, H + G], if qk_norm
  AlignedBuffer attention;  // [T, q_columns]
  AlignedBuffer lse_TH;
  AlignedBuffer middle_TD;  // residual stream after attention
  AlignedBuffer middle_rstd_T;
  AlignedBuffer gate_up;  // [T, 2 mlp_columns]
  void reserve(const ModelConfig& config, const ParameterLayout& layout, int64_t num_rows);
};

// A buffer of weights with what stands where in it.
struct TrainableWeights {
  const WeightLayout& layout;
  float* values = nullptr;  // [layout.size]
};

// A dense decoder-only transformer of the Llama, Qwen2 and Qwen3 families with its weights: the one
// forward implementation that rollout, scoring and training share. Not thread-safe: it owns scratch
// memory; the kernels inside use all threads of common/parallel.h.
class Transformer {
 public:
  // Weights are zero until loaded or initialised. `config` must be valid.
  explicit Transformer(ModelConfig config);
  // Reads config and weights of a Hugging Face directory.
  static Result<std::unique_ptr<Transformer>> load(const std::string& dir);
  // The weights of a language model under a new score head, drawn by `seed`.
  static std::unique_ptr<Transformer> with_score_head(const Transformer& source, uint64_t seed);

  const ModelConfig& config() const { return config_; }
  const ParameterLayout& layout() const { return layout_; }
  float* parameters() { return parameters_.data(); }
  const float* parameters() const { return parameters_.data(); }
  int64_t padded_vocab_size() const;
  int64_t padded_head_rows() const;  // columns of head(); the same with a language head

  // Takes an adapter of this model and merges it; from then on it is what training changes.
  void set_adapter(std::unique_ptr<LoraAdapter> adapter);
  // Takes it off again; the weights stay merged, and all of them are what training changes.
  std::unique_ptr<LoraAdapter> take_adapter() { return std::move(adapter_); }
  LoraAdapter* adapter() { return adapter_.get(); }  // null: none
  const LoraAdapter* adapter() const { return adapter_.get(); }
  // What training changes: all weights, or the adapter's.
  TrainableWeights trainable();
  // To be called after the trainable weights were written to.
  void trainable_changed();

  // Final hidden states after the last norm, [T, D]; D floats a row.
  void forward(const ForwardRows& rows, KvCache& cache, float* hidden_TD);

  // Logits of `num_rows` hidden rows (D apart), or their scores, the first of the columns:
  // [num_rows, padded_head_rows()].
  void head(const float* hidden_RD, int64_t num_rows, float* logits_RV) const;

  // The parts of a pass, for training: embedding, one layer (x_TD is updated in place; `pages` are
  // that layer's), final norm (rstd_T may be null).
  void embed(std::span<const int32_t> token_ids, float* x_TD) const;
  void layer_forward(int64_t layer, const ForwardRows& rows,
                     const kernels::KvPageLayout& page_layout, float* pages, float* x_TD,
                     LayerActivations& activations);
  void final_norm(const float* x_TD, int64_t num_rows, float* hidden_TD, float* rstd_T) const;

  // Makes the rotary angles of positions [0, num_positions) available; forward() does so by itself.
  void reserve_positions(int64_t num_positions) { rope_table_.reserve(num_positions); }
  const kernels::RopeTable& rope_table() const { return rope_table_; }
  float attention_scale() const;

 private:
  ModelConfig config_;
  ParameterLayout layout_;
  AlignedBuffer parameters_;
  std::unique_ptr<LoraAdapter> adapter_;
  kernels::RopeTable rope_table_;
  LayerActivations scratch_;
  AlignedBuffer normed_, projected_, inner_, stream_;
};

}  // namespace gradus::model
