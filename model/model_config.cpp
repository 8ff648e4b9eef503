// SPDX-License-Identifier: Apache-2.0
#include "model/model_config.h"

#include <array>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "common/strings.h"
#include "model/internal/json_file.h"

namespace gradus::model {
namespace {

using nlohmann::json;

constexpr int64_t kMaxWidth = int64_t{1} << 20;  // keeps every product of sizes below 2^63
constexpr int64_t kMaxLayers = 4096;
// Positions and token ids are exact in float up to here.
constexpr int64_t kMaxCount = int64_t{1} << 24;

constexpr std::array kFamilies = {Family::kLlama, Family::kQwen2, Family::kQwen3};

// Reads keys of one JSON object. The first problem is kept and all reads after it give the default,
// so that a caller asks once, at the end.
class KeyReader {
 public:
  KeyReader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const Status& status() const { return status_; }
  void fail(Status status) {
    if (status_.ok()) status_ = status.with_prefix(where_);
  }

  // Null stands for an absent key, as in transformers.
  const json* find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  int64_t integer(const char* key, std::optional<int64_t> absent = {}) {
    const json* value = find(key);
    if (value == nullptr) return or_missing(key, absent, int64_t{0});
    if (value->is_number_integer() && in_range(*value)) return value->get<int64_t>();
    fail(invalid_argument("'{}' must be an integer, got {}", key, value->dump()));
    return 0;
  }

  double number(const char* key, std::optional<double> absent = {}) {
    const json* value = find(key);
    if (value == nullptr) return or_missing(key, absent, 0.0);
    if (value->is_number()) return value->get<double>();
    fail(invalid_argument("'{}' must be a number, got {}", key, value->dump()));
    return 0;
  }

  bool boolean(const char* key, bool absent) {
    const json* value = find(key);
    if (value == nullptr) return absent;
    if (value->is_boolean()) return value->get<bool>();
    fail(invalid_argument("'{}' must be true or false, got {}", key, value->dump()));
    return absent;
  }

  std::string text(const char* key, std::optional<std::string> absent = {}) {
    const json* value = find(key);
    if (value == nullptr) return or_missing(key, absent, std::string());
    if (value->is_string()) return value->get<std::string>();
    fail(invalid_argument("'{}' must be a string, got {}", key, value->dump()));
    return {};
  }

  // A token id, or several: [] when absent.
  std::vector<int32_t> ids(const char* key) {
    const json* value = find(key);
    std::vector<int32_t> ids;
    if (value == nullptr) return ids;
    for (const json& id : value->is_array() ? *value : json::array({*value})) {
      if (!id.is_number_integer() || !in_range(id) || id.get<int64_t>() < 0 ||
          id.get<int64_t>() >= kMaxCount) {
        fail(invalid_argument("'{}' must be a token id or a list of them, got {}", key,
                              value->dump()));
        return {};
      }
      ids.push_back(id.get<int32_t>());
    }
    return ids;
  }

  std::optional<int32_t> id(const char* key) {
    const std::vector<int32_t> all = ids(key);
    if (all.size() > 1) {
      fail(invalid_argument("'{}' must be one token id, got {}", key, object_.at(key).dump()));
    }
    return all.empty() ? std::nullopt : std::optional(all[0]);
  }

 private:
  static bool in_range(const json& value) {
    return !value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{INT64_MAX};
  }
  template <class T>
  T or_missing(const char* key, const std::optional<T>& absent, T nothing) {
    if (!absent) fail(invalid_argument("key '{}' is missing", key));
    return absent.value_or(nothing);
  }

  const json& object_;
  std::string where_;
  Status status_;
};

std::optional<Family> family_of(const std::string& model_type) {
  for (const Family family : kFamilies) {
    if (model_type == family_name(family)) return family;
  }
  return std::nullopt;
}

std::string supported_families() {
  std::vector<std::string> names;
  for (const Family family : kFamilies) names.emplace_back(family_name(family));
  return join(names, ", ");
}

// Rotary settings: transformers 4 has rope_theta beside rope_scaling {type or rope_type, ...},
// transformers 5 rope_parameters with all of them. Where both are given it lets rope_scaling win,
// and so do we.
Status read_rope(KeyReader& config, const std::string& path, ModelConfig& out) {
  const auto check_partial = [](KeyReader& keys) {
    const double part = keys.number("partial_rotary_factor", 1.0);
    if (part != 1.0) {
      keys.fail(
          invalid_argument("'partial_rotary_factor' must be 1, got {}; rotating a part of each "
                           "head is not supported",
                           part));
    }
  };
  const char* key = "rope_scaling";
  const json* scaling = config.find(key);
  if (scaling == nullptr || scaling->empty()) scaling = config.find(key = "rope_parameters");
  out.rope_theta = config.number("rope_theta", 10000.0);
  check_partial(config);
  if (scaling == nullptr) return config.status();
  if (!scaling->is_object()) {
    config.fail(invalid_argument("'{}' must be an object, got {}", key, scaling->dump()));
    return config.status();
  }

  KeyReader rope(*scaling, path + ": " + key);
  out.rope_theta = rope.number("rope_theta", out.rope_theta);
  check_partial(rope);
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  RopeScaling& result = out.rope_scaling;
  if (type == "linear") {
    result.kind = RopeScaling::Kind::kLinear;
    result.factor = rope.number("factor");
  } else if (type == "llama3") {
    result.kind = RopeScaling::Kind::kLlama3;
    result.factor = rope.number("factor");
    result.low_freq_factor = rope.number("low_freq_factor");
    result.high_freq_factor = rope.number("high_freq_factor");
    result.original_max_position_embeddings =
        rope.integer("original_max_position_embeddings", out.max_position_embeddings);
  } else if (type != "default") {
    rope.fail(
        invalid_argument("rope_type '{}' is not supported; supported are default, linear and "
                         "llama3; remove '{}' to use "
                         "the model within the context it was trained on",
                         type, key));
  }
  return config.status().ok() ? rope.status() : config.status();
}

// Features that change the result and that the forward pass does not have.
void refuse_unsupported(KeyReader& config, const ModelConfig& out) {
  const std::string activation = config.text("hidden_act", "silu");
  if (activation != "silu") {
    config.fail(invalid_argument("hidden_act '{}' is not supported; only silu is", activation));
  }
  if (config.find("quantization_config") != nullptr) {
    config.fail(
        invalid_argument("'quantization_config': quantised weights are not supported; use the F32, "
                         "F16 or BF16 model"));
  }
  const bool has_window = out.family != Family::kLlama &&
                          config.boolean("use_sliding_window", false) &&
                          config.find("sliding_window") != nullptr &&
                          config.integer("max_window_layers", 28) < out.num_layers;
  bool has_other_layers = false;
  if (const json* types = config.find("layer_types")) {
    for (const json& type : *types) has_other_layers |= type != "full_attention";
  }
  if (has_window || has_other_layers) {
    config.fail(
        invalid_argument("{}: sliding-window attention is not supported; every layer must attend "
                         "to the whole context",
                         has_other_layers ? "'layer_types'" : "'use_sliding_window'"));
  }
}

Status check_range(const char* field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return {};
  return invalid_argument("{} must be in [{}, {}], got {}", field, least, most, value);
}

Status check_positive(const char* field, double value) {
  if (value > 0 && std::isfinite(value)) return {};
  return invalid_argument("{} must be a positive number, got {}", field, value);
}

Status check_id(const char* field, int32_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return {};
  return invalid_argument("{} must be a token id below vocab_size {}, got {}", field, vocab_size,
                          id);
}

Status validate_rope(const ModelConfig& config) {
  GRADUS_RETURN_IF_ERROR(check_positive("rope_theta", config.rope_theta));
  const RopeScaling& rope = config.rope_scaling;
  if (rope.kind == RopeScaling::Kind::kNone) return {};
  if (!(rope.factor >= 1) || !std::isfinite(rope.factor)) {
    return invalid_argument("rope_scaling.factor must be at least 1, got {}", rope.factor);
  }
  if (rope.kind == RopeScaling::Kind::kLinear) return {};
  GRADUS_RETURN_IF_ERROR(check_positive("rope_scaling.low_freq_factor", rope.low_freq_factor));
  if (!(rope.high_freq_factor > rope.low_freq_factor) || !std::isfinite(rope.high_freq_factor)) {
    return invalid_argument(
        "rope_scaling.high_freq_factor must be above low_freq_factor {}, got {}",
        rope.low_freq_factor, rope.high_freq_factor);
  }
  return check_range("rope_scaling.original_max_position_embeddings",
                     rope.original_max_position_embeddings, 1, kMaxCount);
}

// Which biases exist is a switch in Llama and Qwen3 (all four projections or none) and fixed in
// Qwen2.
Status validate_biases(const ModelConfig& config) {
  const char* family = family_name(config.family);
  if (config.qk_norm != (config.family == Family::kQwen3)) {
    return invalid_argument("qk_norm must be {} for {}", config.family == Family::kQwen3, family);
  }
  if (config.mlp_bias && config.family != Family::kLlama) {
    return invalid_argument("mlp_bias must be false for {}", family);
  }
  if (config.family == Family::kQwen2) {
    if (config.attention_bias && !config.attention_output_bias) return {};
    return invalid_argument(
        "attention_bias must be true and attention_output_bias false for qwen2, got {} and {}",
        config.attention_bias, config.attention_output_bias);
  }
  if (config.attention_bias == config.attention_output_bias) return {};
  return invalid_argument("attention_output_bias must equal attention_bias for {}, got {} and {}",
                          family, config.attention_output_bias, config.attention_bias);
}

json ids_json(const std::vector<int32_t>& ids) {
  if (ids.empty()) return nullptr;
  return ids.size() == 1 ? json(ids[0]) : json(ids);
}

json id_json(const std::optional<int32_t>& id) { return id ? json(*id) : json(nullptr); }

json rope_json(const ModelConfig& config) {
  const RopeScaling& rope = config.rope_scaling;
  json out = json::object();
  switch (rope.kind) {
    case RopeScaling::Kind::kNone:
      out["rope_type"] = "default";
      return out;
    case RopeScaling::Kind::kLinear:
      out["rope_type"] = "linear";
      out["factor"] = rope.factor;
      return out;
    case RopeScaling::Kind::kLlama3:
      out["rope_type"] = "llama3";
      out["factor"] = rope.factor;
      out["low_freq_factor"] = rope.low_freq_factor;
      out["high_freq_factor"] = rope.high_freq_factor;
      out["original_max_position_embeddings"] = rope.original_max_position_embeddings;
      return out;
  }
  GRADUS_CHECK(false, "kind of rope scaling out of range");
}

constexpr const char* kClassifier = "ForSequenceClassification";

std::string architecture(const ModelConfig& config) {
  const char* head = config.head == Head::kScore ? kClassifier : "ForCausalLM";
  switch (config.family) {
    case Family::kLlama:
      return fmt::format("Llama{}", head);
    case Family::kQwen2:
      return fmt::format("Qwen2{}", head);
    case Family::kQwen3:
      return fmt::format("Qwen3{}", head);
  }
  GRADUS_CHECK(false, "family out of range");
}

// A classifier of one label has a score head. transformers counts the names in id2label, two where
// there are none.
Head read_head(KeyReader& config) {
  const json* names = config.find("architectures");
  if (names == nullptr || !names->is_array() || names->empty() || !names->front().is_string() ||
      !names->front().get<std::string>().ends_with(kClassifier)) {
    return Head::kLanguage;
  }
  const json* labels = config.find("id2label");
  const int64_t num_labels = labels != nullptr && labels->is_object()
                                 ? static_cast<int64_t>(labels->size())
                                 : config.integer("num_labels", 2);
  if (num_labels != 1) {
    config.fail(invalid_argument(
        "'{}' has {} labels; a reward model or critic gives one number: it has 1 (id2label)",
        names->front().get<std::string>(), num_labels));
  }
  return Head::kScore;
}

}  // namespace

const char* family_name(Family family) {
  switch (family) {
    case Family::kLlama:
      return "llama";
    case Family::kQwen2:
      return "qwen2";
    case Family::kQwen3:
      return "qwen3";
  }
  GRADUS_CHECK(false, "family out of range");
}

Status validate(const ModelConfig& config) {
  GRADUS_RETURN_IF_ERROR(check_range("vocab_size", config.vocab_size, 1, kMaxCount));
  GRADUS_RETURN_IF_ERROR(check_range("hidden_size", config.hidden_size, 1, kMaxWidth));
  GRADUS_RETURN_IF_ERROR(check_range("intermediate_size", config.intermediate_size, 1, kMaxWidth));
  GRADUS_RETURN_IF_ERROR(check_range("num_layers", config.num_layers, 1, kMaxLayers));
  GRADUS_RETURN_IF_ERROR(check_range("num_heads", config.num_heads, 1, kMaxWidth));
  GRADUS_RETURN_IF_ERROR(check_range("num_kv_heads", config.num_kv_heads, 1, config.num_heads));
  GRADUS_RETURN_IF_ERROR(check_range("head_dim", config.head_dim, 2, kMaxWidth / config.num_heads));
  GRADUS_RETURN_IF_ERROR(
      check_range("max_position_embeddings", config.max_position_embeddings, 1, kMaxCount));
  if (config.num_heads % config.num_kv_heads != 0) {
    return invalid_argument("num_kv_heads must divide num_heads {}, got {}", config.num_heads,
                            config.num_kv_heads);
  }
  if (config.head_dim % 2 != 0) {
    return invalid_argument("head_dim must be even, got {}", config.head_dim);
  }
  GRADUS_RETURN_IF_ERROR(check_positive("rms_norm_eps", config.rms_norm_eps));
  GRADUS_RETURN_IF_ERROR(validate_rope(config));
  GRADUS_RETURN_IF_ERROR(validate_biases(config));
  for (const int32_t id : config.eos_ids) {
    GRADUS_RETURN_IF_ERROR(check_id("eos_ids", id, config.vocab_size));
  }
  if (config.bos_id) GRADUS_RETURN_IF_ERROR(check_id("bos_id", *config.bos_id, config.vocab_size));
  if (config.pad_id) GRADUS_RETURN_IF_ERROR(check_id("pad_id", *config.pad_id, config.vocab_size));
  return {};
}

Result<ModelConfig> load_model_config(const std::string& dir) {
  const std::string path = dir + "/config.json";
  const Result<json> object = read_json_object(path);
  if (!object.ok()) return object.status();
  KeyReader keys(*object, path);
  ModelConfig config;
  const std::string model_type = keys.text("model_type");
  if (!keys.status().ok()) return keys.status();
  const std::optional<Family> family = family_of(model_type);
  if (!family) {
    return invalid_argument("{}: model_type '{}' is not supported; supported are {}", path,
                            model_type, supported_families());
  }
  config.family = *family;
  config.head = read_head(keys);
  config.vocab_size = keys.integer("vocab_size");
  config.hidden_size = keys.integer("hidden_size");
  config.intermediate_size = keys.integer("intermediate_size");
  config.num_layers = keys.integer("num_hidden_layers");
  config.num_heads = keys.integer("num_attention_heads");
  config.num_kv_heads = keys.integer("num_key_value_heads", config.num_heads);
  config.max_position_embeddings = keys.integer("max_position_embeddings");
  // Without the key Qwen3 has heads of 128 whatever its width, the others divide the width.
  if (config.family == Family::kQwen3) {
    config.head_dim = keys.integer("head_dim", 128);
  } else {
    if (keys.find("head_dim") == nullptr && keys.status().ok() &&
        (config.num_heads < 1 || config.hidden_size % config.num_heads != 0)) {
      keys.fail(invalid_argument(
          "num_attention_heads must divide hidden_size {} when there is no head_dim, "
          "got {}",
          config.hidden_size, config.num_heads));
    }
    config.head_dim =
        keys.integer("head_dim", config.num_heads < 1 ? 0 : config.hidden_size / config.num_heads);
  }
  config.rms_norm_eps = keys.number("rms_norm_eps", 1e-6);
  config.tie_embeddings = keys.boolean("tie_word_embeddings", false);
  config.qk_norm = config.family == Family::kQwen3;
  config.mlp_bias = config.family == Family::kLlama && keys.boolean("mlp_bias", false);
  config.attention_bias = config.family == Family::kQwen2 || keys.boolean("attention_bias", false);
  config.attention_output_bias = config.family != Family::kQwen2 && config.attention_bias;
  GRADUS_RETURN_IF_ERROR(read_rope(keys, path, config));
  refuse_unsupported(keys, config);
  config.eos_ids = keys.ids("eos_token_id");
  config.bos_id = keys.id("bos_token_id");
  config.pad_id = keys.id("pad_token_id");
  if (!keys.status().ok()) return keys.status();

  const std::string generation_path = dir + "/generation_config.json";
  if (std::filesystem::exists(generation_path)) {
    const Result<json> generation = read_json_object(generation_path);
    if (!generation.ok()) return generation.status();
    KeyReader generation_keys(*generation, generation_path);
    const std::vector<int32_t> eos_ids = generation_keys.ids("eos_token_id");
    if (!eos_ids.empty()) config.eos_ids = eos_ids;
    if (!config.bos_id) config.bos_id = generation_keys.id("bos_token_id");
    // Which token a classifier scores is said by config.json alone.
    if (!config.pad_id && config.head == Head::kLanguage) {
      config.pad_id = generation_keys.id("pad_token_id");
    }
    if (!generation_keys.status().ok()) return generation_keys.status();
  }
  GRADUS_RETURN_IF_ERROR(validate(config).with_prefix(path));
  return config;
}

ModelConfig with_score_head(ModelConfig config) {
  if (config.head == Head::kScore) return config;
  config.head = Head::kScore;
  for (const int32_t end : config.eos_ids) {
    if (config.pad_id == end) config.pad_id.reset();
  }
  return config;
}

Status require_head(const ModelConfig& config, Head head, const std::string& where) {
  if (config.head == head) return {};
  if (head == Head::kScore) {
    return invalid_argument(
        "{}: the model ({}) gives text, not a score; name a reward model, as gradus reward-model "
        "writes it",
        where, architecture(config));
  }
  return invalid_argument(
      "{}: the model ({}) gives a score, not text; name a causal language model, or ask it with "
      "gradus score",
      where, architecture(config));
}

std::string config_json(const ModelConfig& config, const std::string& dtype) {
  json rope = rope_json(config);
  json out = {
      {"architectures", {architecture(config)}},
      {"model_type", family_name(config.family)},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"num_hidden_layers", config.num_layers},
      {"num_attention_heads", config.num_heads},
      {"num_key_value_heads", config.num_kv_heads},
      {"head_dim", config.head_dim},
      {"max_position_embeddings", config.max_position_embeddings},
      {"rms_norm_eps", config.rms_norm_eps},
      {"hidden_act", "silu"},
      {"tie_word_embeddings", config.tie_embeddings},
      {"attention_bias", config.attention_bias},
      {"attention_dropout", 0.0},
      {"initializer_range", 0.02},
      {"use_cache", true},
      {"eos_token_id", ids_json(config.eos_ids)},
      {"bos_token_id", id_json(config.bos_id)},
      {"pad_token_id", id_json(config.pad_id)},
      {"rope_theta", config.rope_theta},
      {"torch_dtype", dtype},
  };
  if (config.head == Head::kScore) {
    out["id2label"] = {{"0", "LABEL_0"}};
    out["label2id"] = {{"LABEL_0", 0}};
  }
  out["rope_scaling"] = config.rope_scaling.kind == RopeScaling::Kind::kNone ? json(nullptr) : rope;
  rope["rope_theta"] = config.rope_theta;
  out["rope_parameters"] = std::move(rope);
  if (config.family == Family::kLlama) {
    out["mlp_bias"] = config.mlp_bias;
  } else {
    out["use_sliding_window"] = false;
  }
  return out.dump(2) + "\n";
}

std::string generation_config_json(const ModelConfig& config) {
  json out = json::object();
  if (!config.eos_ids.empty()) out["eos_token_id"] = ids_json(config.eos_ids);
  if (config.bos_id) out["bos_token_id"] = *config.bos_id;
  if (config.pad_id) out["pad_token_id"] = *config.pad_id;
  return out.dump(2) + "\n";
}

std::vector<WeightSpec> weight_specs(const ModelConfig& config) {
  const int64_t width = config.hidden_size;
  const int64_t query_width = config.num_heads * config.head_dim;
  const int64_t kv_width = config.num_kv_heads * config.head_dim;
  std::vector<WeightSpec> specs;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool has_bias) {
    specs.push_back({name + ".weight", {out, in}});
    if (has_bias) specs.push_back({name + ".bias", {out}});
  };
  specs.push_back({"model.embed_tokens.weight", {config.vocab_size, width}});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    specs.push_back({prefix + "input_layernorm.weight", {width}});
    linear(prefix + "self_attn.q_proj", query_width, width, config.attention_bias);
    linear(prefix + "self_attn.k_proj", kv_width, width, config.attention_bias);
    linear(prefix + "self_attn.v_proj", kv_width, width, config.attention_bias);
    linear(prefix + "self_attn.o_proj", width, query_width, config.attention_output_bias);
    if (config.qk_norm) {
      specs.push_back({prefix + "self_attn.q_norm.weight", {config.head_dim}});
      specs.push_back({prefix + "self_attn.k_norm.weight", {config.head_dim}});
    }
    specs.push_back({prefix + "post_attention_layernorm.weight", {width}});
    linear(prefix + "mlp.gate_proj", config.intermediate_size, width, config.mlp_bias);
    linear(prefix + "mlp.up_proj", config.intermediate_size, width, config.mlp_bias);
    linear(prefix + "mlp.down_proj", width, config.intermediate_size, config.mlp_bias);
  }
  specs.push_back({"model.norm.weight", {width}});
  if (config.head == Head::kScore) {
    specs.push_back({"score.weight", {1, width}});
  } else if (!config.tie_embeddings) {
    specs.push_back({"lm_head.weight", {config.vocab_size, width}});
  }
  return specs;
}

int64_t num_parameters(const ModelConfig& config) {
  int64_t total = 0;
  for (const WeightSpec& spec : weight_specs(config)) {
    int64_t size = 1;
    for (const int64_t extent : spec.shape) size *= extent;
    total += size;
  }
  return total;
}

}  // namespace gradus::model
