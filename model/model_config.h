// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"

// The shape of a dense decoder-only transformer, as Hugging Face's config.json and
// generation_config.json tell it: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Plain
// data.
namespace gradus::model {

// `model_type` of config.json. SmolLM, SmolLM2 and Llama 1 to 3 are kLlama.
enum class Family { kLlama, kQwen2, kQwen3 };
const char* family_name(Family family);  // "llama", "qwen2", "qwen3"

// What stands on the last hidden state: logits of the next token, or one number, as a reward model
// and a critic have it (`score.weight` of transformers' AutoModelForSequenceClassification with one
// label).
enum class Head { kLanguage, kScore };

// How the rotary frequencies f_i = theta^(-2i/K) are changed for contexts longer than those trained
// on.
struct RopeScaling {
  enum class Kind {
    kNone,
    kLinear,  // f_i / factor
    // Llama 3.1, with wave length w = 2 pi / f_i and L = original_max_position_embeddings:
    //   w < L / high_freq_factor: f_i;  w > L / low_freq_factor: f_i / factor;  between:
    //   s = (L / w - low) / (high - low), (1 - s) f_i / factor + s f_i
    kLlama3,
  };
  Kind kind = Kind::kNone;
  double factor = 1.0;                           // >= 1
  double low_freq_factor = 1.0;                  // kLlama3 alone, > 0
  double high_freq_factor = 4.0;                 // kLlama3 alone, > low_freq_factor
  int64_t original_max_position_embeddings = 0;  // kLlama3 alone, >= 1
  bool operator==(const RopeScaling&) const = default;
};

struct ModelConfig {
  Family family = Family::kLlama;
  Head head = Head::kLanguage;
  int64_t vocab_size = 0;         // V
  int64_t hidden_size = 0;        // D
  int64_t intermediate_size = 0;  // F
  int64_t num_layers = 0;
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // G, divides H
  int64_t head_dim = 0;      // K, even; H * K need not be D (Qwen3)
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool tie_embeddings = false;         // the language head is the embedding matrix
  bool attention_bias = false;         // biases of q_proj, k_proj, v_proj
  bool attention_output_bias = false;  // bias of o_proj
  bool mlp_bias = false;               // biases of gate_proj, up_proj, down_proj
  bool qk_norm = false;                // RMSNorm of each head of q and k, before the rotation
  std::vector<int32_t>
      eos_ids;  // a response ends at any of them: generation_config's, else config's
  std::optional<int32_t> bos_id;  // config's, else generation_config's
  std::optional<int32_t> pad_id;  // with a score head it is never the token that is scored
  int64_t head_rows() const { return head == Head::kScore ? 1 : vocab_size; }
  bool operator==(const ModelConfig&) const = default;
};

// InvalidArgument names the first field out of its range, with its value; among them what the
// family cannot express in config.json (an o_proj bias without q, k, v biases in Llama, any MLP
// bias in Qwen).
Status validate(const ModelConfig& config);

// Reads `dir`/config.json and, if it is there, `dir`/generation_config.json; old and new names of
// the keys (rope_theta and rope_scaling, rope_parameters). NotFound without config.json;
// InvalidArgument for JSON that does not parse, a missing or out-of-range key, and a feature that
// is not supported (model_type, hidden_act, sliding windows, quantised weights, yarn and dynamic
// scaling, a classifier of several labels), naming file and key.
Result<ModelConfig> load_model_config(const std::string& dir);

// The same model under a score head. Its end tokens are scored: a pad token that is one of them is
// dropped, since what is padding is not. A config that has the head already is left as it is.
ModelConfig with_score_head(ModelConfig config);

// InvalidArgument, after `where`, unless the model has the head that a command needs.
Status require_head(const ModelConfig& config, Head head, const std::string& where);

// Text of the two files that transformers 4 and 5 read as `config`; `dtype` is "float32" or
// "bfloat16".
std::string config_json(const ModelConfig& config, const std::string& dtype);
std::string generation_config_json(const ModelConfig& config);

// A weight by its name in a Hugging Face checkpoint, e.g. {"model.norm.weight", {576}}. Matrices
// are [out_features, in_features], row-major.
struct WeightSpec {
  std::string hf_name;
  std::vector<int64_t> shape;
  bool operator==(const WeightSpec&) const = default;
};

// All weights that `config` implies, from embedding to head; a tied head has none of its own.
std::vector<WeightSpec> weight_specs(const ModelConfig& config);

// Number of weights: the sum of the products of the shapes, tied ones counted once.
int64_t num_parameters(const ModelConfig& config);

}  // namespace gradus::model
