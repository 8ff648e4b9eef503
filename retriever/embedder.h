// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "data/tokenizer.h"
#include "model/bert_encoder.h"

namespace gradus::retriever {

// Texts to unit vectors by a sentence encoder of BERT's kind, as the PyPI package
// sentence-transformers does it: [CLS] pieces [SEP], cut on the right; hidden states of all tokens
// averaged, or that of [CLS] alone, as 1_Pooling/config.json says (averaged without the file);
// divided by their length. Prefixes that a model wants ("query: ") are the caller's.
//
// A text's vector is a function of that text alone, bit for bit, whatever else is embedded with it.
// Not thread-safe.
class Embedder {
 public:
  // Writes a new encoder for English-like texts (model::BertEncoder::make) into a directory that is
  // there: its vocabulary are all words of `texts`, and single characters for others.
  struct NewEncoder {
    int64_t width = 64, inner_width = 128, num_layers = 1, num_heads = 4, max_tokens = 96;
    uint64_t seed = 0;
  };
  static Status write_new(const std::string& dir, std::span<const std::string> texts,
                          const NewEncoder& options);

  // Reads config.json, model.safetensors, tokenizer.json and, where they are there,
  // sentence_bert_config.json (max_seq_length) and 1_Pooling/config.json. The truncation and
  // padding that tokenizer.json asks for are not applied.
  static Result<std::unique_ptr<Embedder>> load(const std::string& dir);

  int64_t width() const { return encoder_->config().width; }  // D
  int64_t max_tokens() const { return max_tokens_; }          // of a text, [CLS] and [SEP] included
  // Of the weights and all settings that a vector depends on, as they were loaded.
  uint64_t hash() const { return hash_; }

  // Writes the encoder as it is now, with the files that it was loaded with, into a directory that
  // is there; load() gives the same vectors.
  Status save(const std::string& dir) const;

  // Ids of a text as the encoder sees it. InvalidArgument if it is not valid UTF-8.
  Result<std::vector<int32_t>> tokenize(const std::string& text) const;

  // Vectors [N, D] of token lists as tokenize() gives them, with what backward() needs; bit for bit
  // those of embed(). One pass at a time.
  struct TrainingPass {
    model::BertEncoder::Activations activations;
    std::vector<float> vectors;   // [N, D]
    std::vector<double> lengths;  // [N]: of the pooled states before division
  };
  void forward(std::span<const std::vector<int32_t>> texts, TrainingPass& pass);
  // Adds the derivatives by the weights to `gradients`, from those by the vectors.
  void backward(const TrainingPass& pass, std::span<const float> dvectors_ND,
                model::BertWeights& gradients);
  model::BertEncoder& encoder() { return *encoder_; }

  // [N, D], row after row, each of length 1. InvalidArgument naming the first text that is not
  // valid UTF-8.
  Result<std::vector<float>> embed(std::span<const std::string> texts);
  // The same of token lists as tokenize() gives them.
  std::vector<float> embed_tokens(std::span<const std::vector<int32_t>> texts);

 private:
  Embedder() = default;
  // Returns the length of the pooled state.
  double pool(const float* hidden_LD, int64_t length, float* vector_D) const;

  std::string dir_;
  std::unique_ptr<model::BertEncoder> encoder_;
  std::unique_ptr<data::Tokenizer> tokenizer_;
  int64_t max_tokens_ = 0;
  bool takes_first_ = false;  // the state of [CLS] instead of the mean
  int32_t first_id_ = 0, last_id_ = 0;
  uint64_t hash_ = 0;
};

}  // namespace gradus::retriever
