// SPDX-License-Identifier: Apache-2.0
#include "model/gguf_checkpoint.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "common/strings.h"
#include "model/checkpoint.h"
#include "model/internal/tensor_check.h"

namespace gradus::model {
namespace {

constexpr const char* kRopeFactors = "rope_freqs.weight";

// Parts of tensor names, ggml's and Hugging Face's, of a layer.
struct PartNames {
  const char* gguf;
  const char* hf;
};
constexpr std::array kLayerParts = {
    PartNames{"attn_norm", "input_layernorm"},    PartNames{"attn_q", "self_attn.q_proj"},
    PartNames{"attn_k", "self_attn.k_proj"},      PartNames{"attn_v", "self_attn.v_proj"},
    PartNames{"attn_output", "self_attn.o_proj"}, PartNames{"attn_q_norm", "self_attn.q_norm"},
    PartNames{"attn_k_norm", "self_attn.k_norm"}, PartNames{"ffn_norm", "post_attention_layernorm"},
    PartNames{"ffn_gate", "mlp.gate_proj"},       PartNames{"ffn_up", "mlp.up_proj"},
    PartNames{"ffn_down", "mlp.down_proj"},
};

// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight". `hf_name` is of a
// weight_specs().
std::string gguf_name(std::string_view hf_name) {
  if (hf_name == "model.embed_tokens.weight") return "token_embd.weight";
  if (hf_name == "model.norm.weight") return "output_norm.weight";
  if (hf_name == "lm_head.weight") return "output.weight";
  constexpr std::string_view kLayers = "model.layers.";
  GRADUS_CHECK(hf_name.starts_with(kLayers), fmt::format("unknown weight '{}'", hf_name));
  const std::string_view rest = hf_name.substr(kLayers.size());
  const size_t dot = rest.find('.');
  const size_t last_dot = rest.rfind('.');
  const std::string_view part = rest.substr(dot + 1, last_dot - dot - 1);
  for (const PartNames& names : kLayerParts) {
    if (part == names.hf) {
      return fmt::format("blk.{}.{}{}", rest.substr(0, dot), names.gguf, rest.substr(last_dot));
    }
  }
  GRADUS_CHECK(false, fmt::format("unknown weight '{}'", hf_name));
}

// Reads keys of one file; the first problem is kept and all reads after it give the default.
class KeyReader {
 public:
  explicit KeyReader(const GgufReader& file) : file_(file) {}
  const Status& status() const { return status_; }
  void fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

  int64_t integer(const std::string& key, std::optional<int64_t> absent = {}) {
    return get<int64_t>(key, absent, "an integer", [](const GgufValue& v) { return v.integer(); });
  }
  double number(const std::string& key, std::optional<double> absent = {}) {
    return get<double>(key, absent, "a number", [](const GgufValue& v) { return v.number(); });
  }
  std::string text(const std::string& key, std::optional<std::string> absent = {}) {
    return get<std::string>(key, absent, "a text", [](const GgufValue& v) {
      const auto text = v.text();
      return text ? std::optional(std::string(*text)) : std::nullopt;
    });
  }
  std::optional<bool> truth(const std::string& key) {
    if (file_.find(key) == nullptr) return std::nullopt;
    return get<bool>(key, false, "a truth value", [](const GgufValue& v) { return v.truth(); });
  }
  std::optional<int32_t> id(const std::string& key) {
    if (file_.find(key) == nullptr) return std::nullopt;
    const int64_t value = integer(key);
    if (value >= 0 && value <= INT32_MAX) return static_cast<int32_t>(value);
    fail(data_loss("key '{}' must be a token id, got {}", key, value));
    return std::nullopt;
  }
  std::vector<std::string> texts(const std::string& key) {
    const GgufValue* value = file_.find(key);
    if (value == nullptr) return {};
    if (!value->is_array || value->type != GgufType::kString) {
      fail(data_loss("key '{}' must be an array of texts", key));
      return {};
    }
    return {value->texts.begin(), value->texts.end()};
  }

 private:
  template <class T, class Convert>
  T get(const std::string& key, const std::optional<T>& absent, const char* kind, Convert convert) {
    const GgufValue* value = file_.find(key);
    if (value == nullptr) {
      if (!absent) fail(data_loss("key '{}' is missing", key));
      return absent.value_or(T());
    }
    const std::optional<T> converted = convert(*value);
    if (!converted) fail(data_loss("key '{}' must be {}", key, kind));
    return converted.value_or(T());
  }

  const GgufReader& file_;
  Status status_;
};

// The divisors of the rotary frequencies under llama3 scaling, as llama.cpp computes them for
// rope_freqs.
std::vector<double> llama3_factors(const ModelConfig& config, const RopeScaling& rope) {
  std::vector<double> factors;
  const double length = static_cast<double>(rope.original_max_position_embeddings);
  for (int64_t i = 0; i < config.head_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    const double turns = length * std::pow(config.rope_theta, -exponent) / (2 * std::numbers::pi);
    const double blend = std::clamp(
        (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
    factors.push_back(1 / ((1 - blend) / rope.factor + blend));
  }
  return factors;
}

// llama.cpp keeps llama3 scaling only as its result, one divisor of each frequency. The divisors
// say that the longest wave is stretched by `factor` and that the blend s between 1 / factor and 1
// is linear in the frequency: s = (L f / 2 pi - low) / (high - low). Scaling L, low and high
// together changes nothing, so low is 1, and two points give L and high. With fewer the values of
// every Llama 3 are tried. Wrong guesses do not reproduce the divisors, which is checked.
Result<RopeScaling> recognise_llama3(const ModelConfig& config,
                                     const std::vector<float>& divisors) {
  RopeScaling rope = {.kind = RopeScaling::Kind::kLlama3,
                      .factor = *std::max_element(divisors.begin(), divisors.end()),
                      .low_freq_factor = 1,
                      .high_freq_factor = 4,
                      .original_max_position_embeddings = 8192};
  std::vector<std::pair<double, double>> points;  // turns per token, blend
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double blend = (1.0 / divisors[i] - 1 / rope.factor) / (1 - 1 / rope.factor);
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    const double turns = std::pow(config.rope_theta, -exponent) / (2 * std::numbers::pi);
    if (blend > 1e-4 && blend < 1 - 1e-4) points.emplace_back(turns, blend);
  }
  if (points.size() >= 2) {
    const auto [turns_a, blend_a] = points.front();
    const auto [turns_b, blend_b] = points.back();
    const double slope = (blend_a - blend_b) / (turns_a - turns_b);  // L / (high - 1)
    const double offset = slope * turns_a - blend_a;                 // 1 / (high - 1)
    rope.high_freq_factor = std::round(1e3 * (1 + 1 / offset)) / 1e3;
    rope.original_max_position_embeddings = std::llround(slope / offset);
  }
  const std::vector<double> implied = llama3_factors(config, rope);
  for (size_t i = 0; i < divisors.size(); ++i) {
    if (!(std::abs(implied[i] - divisors[i]) <= 1e-4 * implied[i])) {
      return invalid_argument(
          "tensor '{}' is not what llama3 scaling gives (value {} is {}, expected {:.6}); other "
          "scaling of single frequencies is not supported",
          kRopeFactors, i, divisors[i], implied[i]);
    }
  }
  return rope;
}

Status read_rope(const GgufReader& file, KeyReader& keys, const std::string& arch,
                 ModelConfig& config) {
  config.rope_theta = keys.number(arch + ".rope.freq_base", 10000.0);
  const int64_t rotated = keys.integer(arch + ".rope.dimension_count", config.head_dim);
  if (rotated != config.head_dim) {
    keys.fail(invalid_argument(
        "key '{}.rope.dimension_count' must be the head width {}, got {}; rotating a "
        "part of each head is not supported",
        arch, config.head_dim, rotated));
  }
  const std::string type = keys.text(arch + ".rope.scaling.type", "none");
  if (type == "linear") {
    config.rope_scaling.kind = RopeScaling::Kind::kLinear;
    config.rope_scaling.factor = keys.number(arch + ".rope.scaling.factor");
  } else if (type != "none") {
    keys.fail(invalid_argument(
        "key '{}.rope.scaling.type' is '{}'; supported are none, linear and llama3 by "
        "{}",
        arch, type, kRopeFactors));
  }
  const GgufTensor* factors = file.find_tensor(kRopeFactors);
  if (factors == nullptr || !keys.status().ok()) return keys.status();
  if (factors->shape != std::vector<int64_t>{config.head_dim / 2} || type != "none") {
    return data_loss(
        "tensor '{}' must have shape [{}] and no other rope scaling beside it, got {} and '{}'",
        kRopeFactors, config.head_dim / 2, shape_text(factors->shape), type);
  }
  std::vector<float> divisors(static_cast<size_t>(config.head_dim / 2));
  GgufReader::read_f32(*factors, divisors.data());
  if (std::ranges::all_of(divisors, [](float divisor) { return divisor == 1.0f; })) return {};
  const Result<RopeScaling> rope = recognise_llama3(config, divisors);
  if (!rope.ok()) return rope.status();
  config.rope_scaling = *rope;
  return {};
}

Status check_supported(KeyReader& keys, const std::string& arch) {
  const std::string window = arch + ".attention.sliding_window";
  if (keys.integer(window, 0) != 0) {
    keys.fail(invalid_argument("key '{}' is {}; sliding-window attention is not supported", window,
                               keys.integer(window, 0)));
  }
  const std::string experts = arch + ".expert_count";
  if (keys.integer(experts, 0) != 0) {
    keys.fail(invalid_argument("key '{}' is {}; mixtures of experts are not supported", experts,
                               keys.integer(experts, 0)));
  }
  return keys.status();
}

Result<ModelConfig> read_config(const GgufReader& file) {
  KeyReader keys(file);
  const std::string arch = keys.text("general.architecture");
  if (!keys.status().ok()) return keys.status();
  ModelConfig config;
  if (arch == "llama") {
    config.family = Family::kLlama;
  } else if (arch == "qwen2") {
    config.family = Family::kQwen2;
  } else if (arch == "qwen3") {
    config.family = Family::kQwen3;
  } else {
    return invalid_argument("architecture '{}' is not supported; supported are llama, qwen2, qwen3",
                            arch);
  }
  GRADUS_RETURN_IF_ERROR(check_supported(keys, arch));
  const auto has = [&](const char* name) { return file.find_tensor(name) != nullptr; };
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return data_loss(
        "tensor 'token_embd.weight' is missing or no matrix; this file holds no whole model");
  }
  config.vocab_size = embedding->shape[0];
  config.hidden_size = keys.integer(arch + ".embedding_length");
  config.intermediate_size = keys.integer(arch + ".feed_forward_length");
  config.num_layers = keys.integer(arch + ".block_count");
  config.num_heads = keys.integer(arch + ".attention.head_count");
  config.num_kv_heads = keys.integer(arch + ".attention.head_count_kv", config.num_heads);
  config.max_position_embeddings = keys.integer(arch + ".context_length");
  config.rms_norm_eps = keys.number(arch + ".attention.layer_norm_rms_epsilon");
  const int64_t even_width = config.num_heads < 1 ? 0 : config.hidden_size / config.num_heads;
  config.head_dim = keys.integer(arch + ".attention.key_length", even_width);
  if (keys.integer(arch + ".attention.value_length", config.head_dim) != config.head_dim) {
    keys.fail(invalid_argument(
        "keys '{}.attention.key_length' and '.value_length' differ; heads of k and v "
        "must have one width",
        arch));
  }
  config.tie_embeddings = !has("output.weight");
  config.attention_bias = has("blk.0.attn_q.bias");
  config.attention_output_bias = has("blk.0.attn_output.bias");
  config.mlp_bias = has("blk.0.ffn_gate.bias");
  config.qk_norm = has("blk.0.attn_q_norm.weight");
  for (const char* key : {"eos", "eot", "eom"}) {
    const auto id = keys.id(fmt::format("tokenizer.ggml.{}_token_id", key));
    if (id && std::ranges::find(config.eos_ids, *id) == config.eos_ids.end())
      config.eos_ids.push_back(*id);
  }
  config.bos_id = keys.id("tokenizer.ggml.bos_token_id");
  config.pad_id = keys.id("tokenizer.ggml.padding_token_id");
  if (!keys.status().ok()) return keys.status();
  if (config.head_dim < 2 || config.head_dim % 2 != 0) {
    return data_loss("head width must be even, got {} (embedding_length {} over head_count {})",
                     config.head_dim, config.hidden_size, config.num_heads);
  }
  GRADUS_RETURN_IF_ERROR(read_rope(file, keys, arch, config));
  GRADUS_RETURN_IF_ERROR(validate(config));
  return config;
}

Status check_tensors(const GgufReader& file, const ModelConfig& config) {
  std::vector<NamedShape> expected, found;
  for (const WeightSpec& spec : weight_specs(config)) {
    expected.push_back({gguf_name(spec.hf_name), spec.shape});
  }
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name != kRopeFactors) found.push_back({std::string(tensor.name), tensor.shape});
  }
  return compare_tensors(expected, found, "the metadata");
}

}  // namespace

Result<GgufCheckpoint> GgufCheckpoint::open(const std::string& path) {
  Result<GgufReader> file = GgufReader::open(path);
  if (!file.ok()) return file.status();
  Result<ModelConfig> config = read_config(*file);
  if (!config.ok()) return config.status().with_prefix(path);
  GRADUS_RETURN_IF_ERROR(check_tensors(*file, *config).with_prefix(path));
  return GgufCheckpoint(std::move(file).value(), std::move(config).value());
}

Status GgufCheckpoint::read_f32(std::string_view hf_name, std::span<const int64_t> shape,
                                float* out) const {
  const GgufTensor* tensor = file_.find_tensor(gguf_name(hf_name));
  GRADUS_CHECK(tensor != nullptr, fmt::format("the metadata imply no tensor '{}'", hf_name));
  GRADUS_CHECK(std::ranges::equal(tensor->shape, shape),
               fmt::format("tensor '{}' is {}, asked for as {}", hf_name, shape_text(tensor->shape),
                           shape_text(shape)));
  const auto num_values = static_cast<size_t>(tensor->num_values());
  const bool is_rotated =
      hf_name.find(".q_proj.") != hf_name.npos || hf_name.find(".k_proj.") != hf_name.npos;
  if (config_.family == Family::kLlama && is_rotated) {
    std::vector<float> stored(num_values);
    GgufReader::read_f32(*tensor, stored.data());
    const int64_t half = config_.head_dim / 2;
    const int64_t width = shape.size() == 1 ? 1 : shape[1];
    for (int64_t row = 0; row < shape[0]; ++row) {
      const int64_t head = row / config_.head_dim;
      const int64_t within = row % config_.head_dim;
      const int64_t stored_row = head * config_.head_dim + within % half * 2 + within / half;
      std::copy_n(stored.data() + stored_row * width, width, out + row * width);
    }
  } else {
    GgufReader::read_f32(*tensor, out);
  }
  return check_finite(hf_name, {out, num_values}).with_prefix(file_.path());
}

Result<data::GgufTokenizerMetadata> tokenizer_metadata(const GgufReader& file) {
  KeyReader keys(file);
  const std::string prefix = "tokenizer.ggml.";
  data::GgufTokenizerMetadata out;
  out.model = keys.text(prefix + "model");
  out.pre = keys.text(prefix + "pre", "");
  out.tokens = keys.texts(prefix + "tokens");
  out.merges = keys.texts(prefix + "merges");
  if (const GgufValue* types = file.find(prefix + "token_type")) {
    const auto items = types->integers();
    if (!items) keys.fail(data_loss("key '{}token_type' must be an array of integers", prefix));
    for (const int64_t type : items.value_or(std::vector<int64_t>())) {
      out.token_types.push_back(static_cast<int32_t>(type));
    }
  }
  if (const GgufValue* scores = file.find(prefix + "scores")) {
    const auto items = scores->numbers();
    if (!items) keys.fail(data_loss("key '{}scores' must be an array of numbers", prefix));
    for (const double score : items.value_or(std::vector<double>())) {
      out.scores.push_back(static_cast<float>(score));
    }
  }
  out.bos_id = keys.id(prefix + "bos_token_id");
  out.eos_id = keys.id(prefix + "eos_token_id");
  out.pad_id = keys.id(prefix + "padding_token_id");
  out.unk_id = keys.id(prefix + "unknown_token_id");
  out.add_bos = keys.truth(prefix + "add_bos_token");
  out.add_space_prefix = keys.truth(prefix + "add_space_prefix");
  if (file.find("tokenizer.chat_template") != nullptr) {
    out.chat_template = keys.text("tokenizer.chat_template");
  }
  if (!keys.status().ok()) return keys.status().with_prefix(file.path());
  return out;
}

}  // namespace gradus::model
