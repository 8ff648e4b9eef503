// SPDX-License-Identifier: Apache-2.0
#include "model/model_source_config.h"

#include "common/config/rules.h"

namespace gradus::model {

void NewArchitectureConfig::visit(FieldVisitor& v) {
  v.field("family", family, "Which published architecture the layers follow.",
          one_of({"llama", "qwen2", "qwen3"}));
  v.field("hidden_size", hidden_size, "Width of the residual stream.", at_least(1));
  v.field("intermediate_size", intermediate_size, "Inner width of the SwiGLU block.", at_least(1));
  v.field("num_layers", num_layers, "Transformer layers.", at_least(1));
  v.field("num_heads", num_heads, "Query heads of a layer.", at_least(1));
  v.field("num_kv_heads", num_kv_heads,
          "Key and value heads of a layer; each serves num_heads / num_kv_heads "
          "query heads.",
          at_least(1));
  v.field("head_dim", head_dim, "Width of a head, even; unset: hidden_size / num_heads.",
          at_least(2));
  v.field("max_position_embeddings", max_position_embeddings,
          "Longest sequence in tokens, prompt and response together.", at_least(1));
  v.field("rope_theta", rope_theta, "Base of the rotary angles.", greater_than(0));
  v.field("rms_norm_eps", rms_norm_eps, "Added to the mean square in RMSNorm.", greater_than(0));
  v.field("tie_embeddings", tie_embeddings, "Whether the output head shares the embedding matrix.");
}

void NewModelConfig::visit(FieldVisitor& v) {
  v.field("architecture", architecture, "Shape of the model.");
  v.field(
      "tokenizer", tokenizer,
      "`char`: one token per printable ASCII character; otherwise the folder of a tokenizer.json.",
      non_empty());
  v.field("initializer_range", initializer_range,
          "Standard deviation of the initial weights; drawn from run.seed.", greater_than(0));
}

void ModelSourceConfig::visit(FieldVisitor& v) {
  v.field("path", path,
          "Hugging Face directory (config.json, safetensors, tokenizer.json) to start from; leave "
          "it empty with model.init.");
  v.field("adapter", adapter,
          "Directory of a LoRA adapter of model.path (PEFT's format): trained on, or merged for "
          "evaluation.");
  v.field("init", init, "A model from scratch, instead of model.path.");
}

ModelConfig to_model_config(const NewArchitectureConfig& config, int64_t vocab_size) {
  ModelConfig model;
  model.family = config.family;
  model.vocab_size = vocab_size;
  model.hidden_size = config.hidden_size;
  model.intermediate_size = config.intermediate_size;
  model.num_layers = config.num_layers;
  model.num_heads = config.num_heads;
  model.num_kv_heads = config.num_kv_heads;
  model.head_dim = config.head_dim.value_or(config.hidden_size / config.num_heads);
  model.max_position_embeddings = config.max_position_embeddings;
  model.rms_norm_eps = config.rms_norm_eps;
  model.rope_theta = config.rope_theta;
  model.tie_embeddings = config.tie_embeddings;
  model.attention_bias = config.family == Family::kQwen2;
  model.qk_norm = config.family == Family::kQwen3;
  return model;
}

Status validate(const ModelSourceConfig& config) {
  ConfigRules rules;
  rules.require(!config.path.empty() || config.init.has_value(),
                "neither model.path nor model.init is set; give the folder of a checkpoint, or "
                "model.init for a model from scratch");
  rules.require(config.path.empty() || !config.init.has_value(),
                "both model.path and model.init are set; keep one: model.path loads a checkpoint, "
                "model.init starts from scratch");
  rules.require(config.adapter.empty() || !config.init.has_value(),
                "both model.adapter and model.init are set; an adapter needs the base that it was "
                "trained on: set model.path instead of model.init");
  if (config.init) {
    const NewArchitectureConfig& shape = config.init->architecture;
    rules.require(shape.num_heads % shape.num_kv_heads == 0,
                  "model.init.architecture.num_heads ({}) must be a multiple of "
                  "model.init.architecture.num_kv_heads ({})",
                  shape.num_heads, shape.num_kv_heads);
    if (shape.head_dim) {
      rules.require(
          *shape.head_dim % 2 == 0,
          "model.init.architecture.head_dim ({}) must be even, rotary embedding turns pairs",
          *shape.head_dim);
    } else {
      rules.require(shape.hidden_size % (2 * shape.num_heads) == 0,
                    "model.init.architecture.hidden_size ({}) must be a multiple of twice "
                    "model.init.architecture.num_heads ({}); or set "
                    "model.init.architecture.head_dim",
                    shape.hidden_size, shape.num_heads);
    }
  }
  return rules.status();
}

}  // namespace gradus::model
