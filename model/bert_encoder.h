// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/aligned_buffer.h"
#include "common/status.h"
#include "kernels/attention.h"

namespace gradus::model {

// Letters: T packed tokens, S sequences, D width, I inner width.

// What config.json of a BERT encoder says.
struct BertConfig {
  int64_t vocab_size = 0, width = 0, inner_width = 0, num_layers = 0, num_heads = 0;
  int64_t max_positions = 0;
  float layer_norm_eps = 1e-12f;
};

// The weights of an encoder, or their gradients: matrices in the panels of kernels/gemm.h.
struct BertWeights {
  struct Linear {
    AlignedBuffer weight, bias;
    int64_t outputs = 0, inputs = 0;
  };
  struct Norm {
    std::vector<float> weight, bias;
  };
  struct Layer {
    Linear qkv, attention, inner, outer;
    Norm attention_norm, outer_norm;
  };
  std::vector<float> words_VD, positions_PD, type_D;
  Norm embedding_norm;
  std::vector<Layer> layers;

  static BertWeights zeros(const BertConfig& config);
  // Every tensor, in one fixed order. Matrices decay, vectors do not.
  void for_each(const std::function<void(float* values, int64_t count, bool is_matrix)>& body);
};

// The encoder of BERT (Devlin et al. 2018, arXiv:1810.04805) and of those built like it (MiniLM,
// BGE, E5, GTE base): learned positions, layer norm behind each sublayer, GELU in its exact form,
// attention in both directions. Sequences are packed end to end without padding, and a token's
// hidden state is a function of its own sequence and the weights alone, bit for bit: not of the
// other sequences, threads or instruction set (docs/numerics.md). fp32. Not thread-safe: it owns
// scratch memory.
class BertEncoder {
 public:
  // Reads config.json and model.safetensors of a Hugging Face directory; names may begin with
  // "bert.". NotFound without them, InvalidArgument naming what is not served, DataLoss naming the
  // tensor that is missing or has another shape.
  static Result<std::unique_ptr<BertEncoder>> load(const std::string& dir);
  // A new one, normal by `seed`: a word with deviation 1 / sqrt(its frequency), matrices with 0.02,
  // positions with 0.002. Words outweigh the layers, so that the mean of a text's states begins as
  // a bag of its words in which rare ones count more, if config.layer_norm_eps is large against
  // their squares: a layer norm makes all words alike. frequencies_V are at least 1.
  static std::unique_ptr<BertEncoder> make(const BertConfig& config,
                                           std::span<const double> frequencies_V, uint64_t seed);
  // Writes config.json and model.safetensors into a directory that is there; load() gives the same
  // bits. Unavailable when the disk is full.
  Status save(const std::string& dir) const;

  const BertConfig& config() const { return config_; }

  // hidden_TD of sequences [begin[s], begin[s + 1]) of token_ids_T; none empty or longer than
  // max_positions, ids in [0, vocab_size) (a bug otherwise).
  void forward(std::span<const int32_t> token_ids_T, std::span<const int64_t> begin,
               float* hidden_TD);

  // What forward() leaves behind when it is told to: all that backward() needs. One pass at a time.
  struct Activations {
    struct Layer {
      AlignedBuffer input, qkv, attention, lse, attention_sum, attention_mean, attention_rstd;
      AlignedBuffer middle, inner, outer_sum, outer_mean, outer_rstd;
    };
    std::vector<int32_t> token_ids;
    std::vector<int64_t> begin;
    AlignedBuffer embedding_sum, embedding_mean, embedding_rstd;
    std::vector<Layer> layers;
  };
  void forward(std::span<const int32_t> token_ids_T, std::span<const int64_t> begin,
               float* hidden_TD, Activations& activations);
  // Adds the derivatives of a loss by the weights to `gradients`, from those by hidden_TD, which is
  // overwritten. Sums run over the tokens in order.
  void backward(const Activations& activations, float* dhidden_TD, BertWeights& gradients);

  // To be trained: what changes them calls nothing.
  BertWeights& weights() { return weights_; }

  // Hash of all weights, for what is made from them.
  uint64_t weights_hash() const;

 private:
  using Linear = BertWeights::Linear;
  using Norm = BertWeights::Norm;
  using Layer = BertWeights::Layer;
  friend class BertLoader;
  explicit BertEncoder(BertConfig config) : config_(config) {}

  void pass(std::span<const int32_t> token_ids_T, std::span<const int64_t> begin, float* hidden_TD,
            Activations* activations);
  void embed(std::span<const int32_t> token_ids, std::span<const int64_t> begin, float* x_TD) const;
  void make_runs(std::span<const int64_t> begin);
  void write_keys(const float* qkv);
  void attend(const float* qkv, float* out_TD, float* lse_TH);
  void attend_backward(const Activations::Layer& saved, const float* dout_TD, float* dqkv);
  void apply(const Linear& linear, const float* x, int64_t num_rows, float* y) const;
  static void apply_backward(const Linear& linear, const float* x, const float* dy,
                             int64_t num_rows, float* dx, Linear& gradients);
  void normalise(const Norm& norm, float* x_TD, int64_t num_rows, AlignedBuffer* sum,
                 AlignedBuffer* mean, AlignedBuffer* rstd) const;
  void normalise_backward(const Norm& norm, const AlignedBuffer& sum, const AlignedBuffer& mean,
                          const AlignedBuffer& rstd, float* dx_TD, int64_t num_rows,
                          Norm& gradients) const;
  void layer_backward(size_t layer, const Activations& activations, float* dx_TD,
                      BertWeights& gradients);

  BertConfig config_;
  BertWeights weights_;
  AlignedBuffer qkv_, attention_, projected_, inner_, pages_;
  // Of the pass in progress: see make_runs.
  std::vector<int32_t> page_ids_;
  std::vector<kernels::AttentionRun> sequences_, rows_;
};

}  // namespace gradus::model
