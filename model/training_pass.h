// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/aligned_buffer.h"
#include "data/packing.h"
#include "kernels/logprob.h"
#include "model/transformer.h"

namespace gradus::model {

// Gradient of a sum over sequences, in the layout of the parameters. Contributions are fma chains
// in token order, so cutting a batch into micro-batches changes no bit; the embedding's rows are
// kept aside until finish(), since a tied head adds to the same weights. With an adapter it is the
// gradient of the adapter, in its layout.
struct Gradients {
  explicit Gradients(const ParameterLayout& layout) : buffer(layout.size) {}
  explicit Gradients(const LoraAdapter& adapter)
      : buffer(adapter.layout().size),
        scale(static_cast<float>(adapter.config().scale())),
        num_scaled(adapter.layout().factors_size) {}
  AlignedBuffer buffer;
  // Of an adapter: finish() multiplies the first so many floats, its factors, by it.
  float scale = 1;
  int64_t num_scaled = 0;
  std::vector<int32_t> embedding_tokens;  // [rows so far]
  std::vector<float> embedding_rows;      // [rows so far, D]

  void clear();
  // Adds the embedding rows, or scales; call once after the last backward.
  void finish(const ParameterLayout& layout, int64_t hidden_size);
};

// Log-probs of a pack's targets and their gradient: the trainer's side of the one forward. Bit for
// bit the log-probs that the rollout engine records under equal weights. Explicit backward, layer
// by layer; with gradient checkpointing only each layer's input is kept and the layer's forward is
// run again. A model with a score head gives one number for each target instead, the score of the
// row that would predict it (of a critic: the value of the state before the token), in the place of
// the log-prob, with entropy 0; temperature and target ids mean nothing to it. Not thread-safe.
class TrainingPass {
 public:
  TrainingPass(Transformer& transformer, bool gradient_checkpointing);

  // Log-softmax(logits / temperature) of each target and the entropy of its row, nats; or scores.
  // With `keep_for_backward` a backward may follow. Ids must be in the vocabulary.
  void forward(const data::Pack& pack, float temperature, bool keep_for_backward);
  std::span<const float> logprobs() const { return logprobs_; }    // [targets]
  std::span<const float> entropies() const { return entropies_; }  // [targets]

  // Adds the gradient of sum_i dlogprobs[i] logprobs[i] + dentropies[i] entropies[i] to
  // `gradients`, made for the transformer's adapter if it has one. After forward(keep_for_backward
  // = true) of the same pack, once.
  void backward(std::span<const float> dlogprobs, std::span<const float> dentropies,
                Gradients& gradients);

  // Bytes that a pack of this many rows and targets takes beside weights and gradients.
  static int64_t planned_bytes(const ModelConfig& config, int64_t num_rows,
                               bool gradient_checkpointing, bool keep_for_backward);

 private:
  void plan_pages(const data::Pack& pack);
  ForwardRows forward_rows() const;
  void read_head(int64_t first, int64_t count, float temperature);
  void linear_gradient(int64_t weight, int64_t bias, const float* dy, int64_t dy_stride,
                       const float* x, int64_t x_stride, int64_t n, int64_t k,
                       Gradients& gradients);
  void layer_backward(int64_t layer, float* dx_TD, Gradients& gradients);

  Transformer& transformer_;
  bool gradient_checkpointing_;
  const data::Pack* pack_ = nullptr;
  float temperature_ = 1;

  // Pages of the pack: tables of all runs one after the other, and the runs that point into them.
  std::vector<int32_t> page_tables_;
  std::vector<kernels::AttentionRun> runs_, extra_writes_;
  std::vector<kernels::KeyRows> key_rows_;
  std::vector<kernels::AttentionBackwardRun> backward_runs_;
  int64_t num_pages_ = 0;

  std::vector<AlignedBuffer> pages_;           // one a layer, or one in all when checkpointing
  std::vector<LayerActivations> activations_;  // likewise
  std::vector<AlignedBuffer> layer_inputs_;    // when checkpointing
  AlignedBuffer stream_, hidden_, final_rstd_, logits_, gathered_, dgathered_, dhidden_;
  AlignedBuffer dnormed_, dqkv_, dattention_, dinner_, inner_, normed_, recompute_;
  std::vector<kernels::LogitStats> stats_;  // [targets]
  std::vector<float> logprobs_, entropies_;
};

}  // namespace gradus::model
