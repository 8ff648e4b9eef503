// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
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

// Memory that passes which go through the model together (TrainingPass::begin()) use one after the
// other: each is at one layer at a time.
struct TrainingScratch {
  AlignedBuffer pages, logits, gathered, dgathered;
  AlignedBuffer dnormed, dqkv, dattention, dinner, inner, normed, recompute;
  LayerActivations activations;
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
  // One of several that share `scratch`.
  TrainingPass(Transformer& transformer, bool gradient_checkpointing,
               std::shared_ptr<TrainingScratch> scratch);

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

  // The same in steps, so that all packs of a batch can pass a layer while its weights are there
  // and its gradient is summed. Forward: begin(), forward_layer() of each layer in order,
  // finish_forward(). Backward: begin_backward(), which says whether there is anything to do,
  // backward_head(), backward_layer() of each layer from the last to the first,
  // backward_embedding(). `pack` outlives them. Not with an adapter.
  void begin(const data::Pack& pack, float temperature, bool keep_for_backward);
  void forward_layer(int64_t layer);
  void finish_forward();
  bool begin_backward(std::span<const float> dlogprobs, std::span<const float> dentropies);
  // With tied embeddings the head's weights get their gradient in backward_tied_head() instead,
  // which computes the logits once more: so that one matrix's gradient is all that is summed then.
  void backward_head(Gradients& gradients);
  void backward_layer(int64_t layer, Gradients& gradients);
  void backward_tied_head(Gradients& gradients);
  void backward_embedding(Gradients& gradients);

  // Bytes that a pack of this many rows and targets takes beside weights and gradients; and what it
  // keeps of them while others that share its scratch memory are computed.
  static int64_t planned_bytes(const ModelConfig& config, int64_t num_rows,
                               bool gradient_checkpointing, bool keep_for_backward);
  static int64_t kept_bytes(const ModelConfig& config, int64_t num_rows,
                            bool gradient_checkpointing);

 private:
  void plan_pages(const data::Pack& pack);
  ForwardRows forward_rows() const;
  void read_head(int64_t first, int64_t count, float temperature);
  void linear_gradient(int64_t weight, int64_t bias, const float* dy, int64_t dy_stride,
                       const float* x, int64_t x_stride, int64_t n, int64_t k,
                       Gradients& gradients);
  void head_backward(float* head_gradient, bool with_inputs);
  void final_norm_backward(float* dweight);
  void layer_backward(int64_t layer, float* dx_TD, Gradients& gradients);
  bool keeps_layers() const { return keep_for_backward_ && !gradient_checkpointing_; }
  LayerActivations& activations_of(int64_t layer);
  AlignedBuffer& pages_of_layer(int64_t layer);

  Transformer& transformer_;
  bool gradient_checkpointing_;
  std::shared_ptr<TrainingScratch> scratch_;
  bool shares_scratch_ = false;
  const data::Pack* pack_ = nullptr;
  bool keep_for_backward_ = false;
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
  AlignedBuffer stream_, hidden_, final_rstd_, dhidden_;
  std::vector<kernels::LogitStats> stats_;  // [targets]
  std::vector<float> logprobs_, entropies_;
  // Targets with a gradient, and theirs.
  std::vector<int64_t> active_;
  std::vector<float> dlogprobs_, dentropies_;
};

}  // namespace gradus::model
