// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "common/status.h"
#include "data/gguf_tokenizer.h"
#include "model/gguf.h"
#include "model/model_config.h"

// A GGUF file of the architectures llama, qwen2 and qwen3 seen as the Hugging Face checkpoint that
// it was made of: the same config, names, shapes and order of rows.
namespace gradus::model {

class GgufCheckpoint {
 public:
  // Derives the config from metadata and tensors (biases and a tied head are told by which tensors
  // there are; llama3 scaling is recognised from the factors in rope_freqs.weight) and checks every
  // tensor's presence and shape. InvalidArgument names an architecture or feature that is not
  // supported, DataLoss missing keys, missing, unknown and wrongly shaped tensors.
  static Result<GgufCheckpoint> open(const std::string& path);

  const ModelConfig& config() const { return config_; }
  const GgufReader& file() const { return file_; }

  // As CheckpointReader::read_f32. The rows of q_proj and k_proj of the llama architecture, which
  // llama.cpp stores with the two halves of each head interleaved, are put back into Hugging Face's
  // order.
  Status read_f32(std::string_view hf_name, std::span<const int64_t> shape, float* out) const;

 private:
  GgufCheckpoint(GgufReader file, ModelConfig config)
      : file_(std::move(file)), config_(std::move(config)) {}

  GgufReader file_;
  ModelConfig config_;
};

// The tokenizer's metadata. DataLoss names a key that is missing or of another type.
Result<data::GgufTokenizerMetadata> tokenizer_metadata(const GgufReader& file);

}  // namespace gradus::model
