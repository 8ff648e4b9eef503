// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/config/field_visitor.h"
#include "common/status.h"
#include "model/model_config.h"

// Which model a run starts from: the `model` section of a run's YAML.
namespace gradus::model {

// Shape of a model made from scratch; the vocabulary size is the tokenizer's.
struct NewArchitectureConfig {
  Family family = Family::kLlama;
  int64_t hidden_size = 128;
  int64_t intermediate_size = 384;
  int64_t num_layers = 4;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 4;
  std::optional<int64_t> head_dim;  // unset: hidden_size / num_heads
  int64_t max_position_embeddings = 512;
  double rope_theta = 10000.0;
  double rms_norm_eps = 1e-6;
  bool tie_embeddings = true;

  void visit(FieldVisitor& v);
};

struct NewModelConfig {
  NewArchitectureConfig architecture;
  std::string tokenizer = "char";
  double initializer_range = 0.02;

  void visit(FieldVisitor& v);
};

struct ModelSourceConfig {
  std::string path;                    // of a Hugging Face directory; empty if `init` is set
  std::string adapter;                 // of a PEFT directory on top of `path`; empty: none
  std::optional<NewModelConfig> init;  // a model from scratch

  void visit(FieldVisitor& v);
};

// The model that `config` describes, for a tokenizer of `vocab_size` ids; biases and head norms are
// those of the family. End and padding ids are left to the caller, who knows the tokenizer.
ModelConfig to_model_config(const NewArchitectureConfig& config, int64_t vocab_size);

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys in full.
Status validate(const ModelSourceConfig& config);

}  // namespace gradus::model
