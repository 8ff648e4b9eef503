// SPDX-License-Identifier: Apache-2.0
#include "model/gguf_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "model/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/gguf_file.h"

namespace gradus::model {
namespace {

using test::GgufFile;
using test::TemporaryFolder;
using test::write_file;

size_t num_values(const WeightSpec& spec) {
  int64_t count = 1;
  for (const int64_t extent : spec.shape) count *= extent;
  return static_cast<size_t>(count);
}

// "model.layers.1.mlp.up_proj.weight" -> "blk.1.ffn_up.weight".
std::string ggml_name(std::string name) {
  const std::vector<std::pair<std::string, std::string>> parts = {
      {"model.embed_tokens", "token_embd"},
      {"model.norm", "output_norm"},
      {"lm_head", "output"},
      {"model.layers", "blk"},
      {"post_attention_layernorm", "ffn_norm"},
      {"input_layernorm", "attn_norm"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  for (const auto& [hf, ggml] : parts) {
    if (const size_t at = name.find(hf); at != name.npos) name.replace(at, hf.size(), ggml);
  }
  return name;
}

// What llama.cpp's converter does to q and k of llama: [H, 2, K/2, ...] -> [H, K/2, 2, ...].
std::vector<float> interleave_heads(const std::vector<float>& rows, int64_t num_rows,
                                    int64_t head_dim) {
  const size_t width = rows.size() / static_cast<size_t>(num_rows);
  std::vector<float> out;
  for (int64_t head = 0; head < num_rows / head_dim; ++head) {
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      for (int64_t half = 0; half < 2; ++half) {
        const auto row = static_cast<size_t>(head * head_dim + half * head_dim / 2 + i);
        out.insert(out.end(), rows.begin() + static_cast<std::ptrdiff_t>(row * width),
                   rows.begin() + static_cast<std::ptrdiff_t>((row + 1) * width));
      }
    }
  }
  return out;
}

// The metadata of `config`, without its rotary scaling.
GgufFile metadata_of(const ModelConfig& config) {
  const std::string arch = family_name(config.family);
  GgufFile file;
  file.text("general.architecture", arch);
  const auto u32 = [&](const char* key, int64_t value) {
    file.u32(arch + key, static_cast<uint32_t>(value));
  };
  u32(".embedding_length", config.hidden_size);
  u32(".feed_forward_length", config.intermediate_size);
  u32(".block_count", config.num_layers);
  u32(".attention.head_count", config.num_heads);
  u32(".attention.head_count_kv", config.num_kv_heads);
  u32(".context_length", config.max_position_embeddings);
  u32(".attention.key_length", config.head_dim);
  file.f32(arch + ".attention.layer_norm_rms_epsilon", static_cast<float>(config.rms_norm_eps));
  file.f32(arch + ".rope.freq_base", static_cast<float>(config.rope_theta));
  file.u32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(config.eos_ids.at(0)));
  if (config.eos_ids.size() > 1) {
    file.u32("tokenizer.ggml.eot_token_id", static_cast<uint32_t>(config.eos_ids[1]));
  }
  file.u32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(*config.bos_id));
  file.u32("tokenizer.ggml.padding_token_id", static_cast<uint32_t>(*config.pad_id));
  return file;
}

// As llama.cpp's converter writes a checkpoint, all weights in F32.
GgufFile converted(const CheckpointReader& reader) {
  const ModelConfig& config = reader.config();
  GgufFile file = metadata_of(config);
  const RopeScaling& rope = config.rope_scaling;
  if (rope.kind == RopeScaling::Kind::kLinear) {
    file.text("llama.rope.scaling.type", "linear");
    file.f32("llama.rope.scaling.factor", static_cast<float>(rope.factor));
  }
  if (rope.kind == RopeScaling::Kind::kLlama3) {
    std::vector<float> divisors;
    const double length = static_cast<double>(rope.original_max_position_embeddings);
    for (int64_t i = 0; i < config.head_dim; i += 2) {
      const double exponent = static_cast<double>(i) / static_cast<double>(config.head_dim);
      const double wave = 2 * std::numbers::pi * std::pow(config.rope_theta, exponent);
      const double smooth =
          (length / wave - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
      divisors.push_back(static_cast<float>(wave < length / rope.high_freq_factor ? 1.0
                                            : wave > length / rope.low_freq_factor
                                                ? rope.factor
                                                : 1 / ((1 - smooth) / rope.factor + smooth)));
    }
    file.f32_tensor("rope_freqs.weight", {config.head_dim / 2}, divisors);
  }
  for (const WeightSpec& spec : weight_specs(config)) {
    std::vector<float> values(num_values(spec));
    EXPECT_TRUE(reader.read_f32(spec.hf_name, spec.shape, values.data()).ok());
    const bool is_rotated = spec.hf_name.find("q_proj") != std::string::npos ||
                            spec.hf_name.find("k_proj") != std::string::npos;
    if (config.family == Family::kLlama && is_rotated) {
      values = interleave_heads(values, spec.shape[0], config.head_dim);
    }
    file.f32_tensor(ggml_name(spec.hf_name), spec.shape, values);
  }
  return file;
}

class GgufOfTinyModel : public ::testing::TestWithParam<const char*> {};

TEST_P(GgufOfTinyModel, GivesBackTheCheckpointItWasMadeOf) {
  const auto original =
      CheckpointReader::open(std::string("tests/golden/tiny_models/") + GetParam());
  ASSERT_TRUE(original.ok()) << original.status().message();
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.gguf";
  write_file(path, converted(*original).bytes());
  const auto gguf = GgufCheckpoint::open(path);
  ASSERT_TRUE(gguf.ok()) << gguf.status().message();
  EXPECT_EQ(gguf->config(), original->config());
  for (const WeightSpec& spec : weight_specs(original->config())) {
    std::vector<float> expected(num_values(spec)), values(num_values(spec));
    ASSERT_TRUE(original->read_f32(spec.hf_name, spec.shape, expected.data()).ok());
    ASSERT_TRUE(gguf->read_f32(spec.hf_name, spec.shape, values.data()).ok());
    EXPECT_EQ(values, expected) << spec.hf_name;
  }
}

INSTANTIATE_TEST_SUITE_P(AllFamilies, GgufOfTinyModel,
                         ::testing::Values("llama3_rope", "llama_linear_rope", "qwen2", "qwen3"),
                         [](const auto& model) {
                           std::string name = model.param;
                           std::erase(name, '_');
                           return name;
                         });

class HandMadeGguf : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.vocab_size = 3;
    config_.hidden_size = config_.intermediate_size = 2;
    config_.num_layers = config_.num_heads = config_.num_kv_heads = 1;
    config_.head_dim = 2;
    config_.max_position_embeddings = 8;
    config_.eos_ids = {2};
    config_.bos_id = config_.pad_id = 1;
  }
  GgufFile& add_weights(GgufFile& file) {
    for (const WeightSpec& spec : weight_specs(config_)) {
      file.f32_tensor(ggml_name(spec.hf_name), spec.shape,
                      std::vector<float>(num_values(spec), 1.0f));
    }
    return file;
  }
  std::string message(const GgufFile& file) {
    const std::string path = folder_.path() + "/x.gguf";
    write_file(path, file.bytes());
    const auto gguf = GgufCheckpoint::open(path);
    return gguf.ok() ? "ok" : gguf.status().message().substr(path.size() + 2);
  }
  ModelConfig config_;
  TemporaryFolder folder_;
};

TEST_F(HandMadeGguf, NamesAnUnsupportedArchitectureOrFeature) {
  EXPECT_EQ(message(GgufFile().text("general.architecture", "gemma3")),
            "architecture 'gemma3' is not supported; supported are llama, qwen2, qwen3");
  GgufFile windowed = metadata_of(config_);
  EXPECT_EQ(
      message(windowed.u32("llama.attention.sliding_window", 4096)),
      "key 'llama.attention.sliding_window' is 4096; sliding-window attention is not supported");
  GgufFile experts = metadata_of(config_);
  EXPECT_EQ(message(experts.u32("llama.expert_count", 8)),
            "key 'llama.expert_count' is 8; mixtures of experts are not supported");
  GgufFile yarn = metadata_of(config_);
  EXPECT_EQ(message(add_weights(yarn.text("llama.rope.scaling.type", "yarn"))),
            "key 'llama.rope.scaling.type' is 'yarn'; supported are none, linear and llama3 by "
            "rope_freqs.weight");
  GgufFile partial = metadata_of(config_);
  EXPECT_EQ(message(add_weights(partial.u32("llama.rope.dimension_count", 1))),
            "key 'llama.rope.dimension_count' must be the head width 2, got 1; rotating a part of "
            "each head "
            "is not supported");
}

TEST_F(HandMadeGguf, NamesMissingKeysAndWrongTypes) {
  EXPECT_EQ(message(GgufFile()), "key 'general.architecture' is missing");
  EXPECT_EQ(message(GgufFile().u32("general.architecture", 1)),
            "key 'general.architecture' must be a text");
  GgufFile bare;
  bare.text("general.architecture", "llama")
      .f32_tensor("token_embd.weight", {3, 2}, std::vector<float>(6));
  EXPECT_EQ(message(bare), "key 'llama.embedding_length' is missing");
}

TEST_F(HandMadeGguf, ListsTensorsThatDoNotFit) {
  GgufFile file = metadata_of(config_);
  EXPECT_EQ(message(file),
            "tensor 'token_embd.weight' is missing or no matrix; this file holds no whole model");
  file.f32_tensor("token_embd.weight", {3, 2}, std::vector<float>(6));
  file.f32_tensor("blk.0.attn_norm.weight", {3}, std::vector<float>(3));
  file.f32_tensor("blk.0.attn_sub_norm.weight", {2}, std::vector<float>(2));
  EXPECT_EQ(
      message(file),
      "9 tensors missing, first 'blk.0.attn_q.weight' [2, 2]; 1 tensor of the wrong shape, first "
      "'blk.0.attn_norm.weight' [3] where the metadata implies [2]; 1 tensor unknown, first "
      "'blk.0.attn_sub_norm.weight' [2]; the weights do not belong to the metadata");
}

TEST_F(HandMadeGguf, RefusesRotaryFactorsOfAnotherKind) {
  config_.head_dim = 8;
  GgufFile file = metadata_of(config_);
  file.f32_tensor("rope_freqs.weight", {4}, std::vector{3.0f, 1.0f, 1.0f, 1.0f});
  EXPECT_EQ(message(add_weights(file)),
            "tensor 'rope_freqs.weight' is not what llama3 scaling gives (value 0 is 3, expected "
            "1); other "
            "scaling of single frequencies is not supported");
}

TEST_F(HandMadeGguf, CountsNanWeights) {
  GgufFile file = metadata_of(config_);
  config_.tie_embeddings = true;
  for (const WeightSpec& spec : weight_specs(config_)) {
    std::vector<float> values(num_values(spec), 1.0f);
    if (spec.hf_name == "model.norm.weight") values[1] = std::nanf("");
    file.f32_tensor(ggml_name(spec.hf_name), spec.shape, values);
  }
  const std::string path = folder_.path() + "/x.gguf";
  write_file(path, file.bytes());
  const auto gguf = GgufCheckpoint::open(path);
  ASSERT_TRUE(gguf.ok()) << gguf.status().message();
  float out[2];
  EXPECT_EQ(gguf->read_f32("model.norm.weight", std::vector<int64_t>{2}, out).message(),
            path +
                ": tensor 'model.norm.weight': 1 of 2 values are NaN or infinite; the weights are "
                "broken");
}

// The values of Llama 3.2: head width 64, theta 500000, factor 32, 8192 tokens.
TEST_F(HandMadeGguf, RecognisesTheRotaryScalingOfLlama32) {
  config_.head_dim = 64;
  config_.rope_theta = 500000;
  config_.rope_scaling = {.kind = RopeScaling::Kind::kLlama3,
                          .factor = 32,
                          .low_freq_factor = 1,
                          .high_freq_factor = 4,
                          .original_max_position_embeddings = 8192};
  const std::string dir = folder_.path() + "/hf";
  ASSERT_TRUE(write_checkpoint(dir, config_, [](const WeightSpec& spec, float* out) {
                std::fill_n(out, num_values(spec), 1.0f);
                return Status();
              }).ok());
  const auto original = CheckpointReader::open(dir);
  ASSERT_TRUE(original.ok()) << original.status().message();
  EXPECT_EQ(original->config(), config_);
  const std::string path = folder_.path() + "/x.gguf";
  write_file(path, converted(*original).bytes());
  const auto gguf = GgufCheckpoint::open(path);
  ASSERT_TRUE(gguf.ok()) << gguf.status().message();
  EXPECT_EQ(gguf->config().rope_scaling, config_.rope_scaling);
}

TEST(TokenizerMetadata, IsTakenFromItsKeys) {
  GgufFile file;
  file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "smollm");
  file.texts("tokenizer.ggml.tokens", {"a", "b", "ab"})
      .i32s("tokenizer.ggml.token_type", {1, 1, 3});
  file.texts("tokenizer.ggml.merges", {"a b"}).u32("tokenizer.ggml.eos_token_id", 2);
  file.key("tokenizer.ggml.add_bos_token", 7, std::string(1, '\1'));
  file.text("tokenizer.chat_template", "{{ x }}");
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/x.gguf";
  write_file(path, file.bytes());
  const auto reader = GgufReader::open(path);
  ASSERT_TRUE(reader.ok());
  const auto metadata = tokenizer_metadata(*reader);
  ASSERT_TRUE(metadata.ok()) << metadata.status().message();
  EXPECT_EQ(metadata->model, "gpt2");
  EXPECT_EQ(metadata->pre, "smollm");
  EXPECT_EQ(metadata->tokens, (std::vector<std::string>{"a", "b", "ab"}));
  EXPECT_EQ(metadata->token_types, (std::vector<int32_t>{1, 1, 3}));
  EXPECT_EQ(metadata->merges, std::vector<std::string>{"a b"});
  EXPECT_EQ(metadata->eos_id, 2);
  EXPECT_EQ(metadata->bos_id, std::nullopt);
  EXPECT_EQ(metadata->add_bos, true);
  EXPECT_EQ(metadata->chat_template, "{{ x }}");

  write_file(
      path,
      GgufFile().text("tokenizer.ggml.model", "gpt2").u32("tokenizer.ggml.tokens", 1).bytes());
  const auto broken = GgufReader::open(path);
  ASSERT_TRUE(broken.ok());
  EXPECT_EQ(tokenizer_metadata(*broken).status().message(),
            path + ": key 'tokenizer.ggml.tokens' must be an array of texts");
}

}  // namespace
}  // namespace gradus::model
