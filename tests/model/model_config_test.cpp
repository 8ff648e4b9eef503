// SPDX-License-Identifier: Apache-2.0
#include "model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/files.h"

namespace gradus::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// What transformers 4 wrote for a small Llama.
const json kLlama = {{"model_type", "llama"},    {"vocab_size", 100},
                     {"hidden_size", 24},        {"intermediate_size", 40},
                     {"num_hidden_layers", 2},   {"num_attention_heads", 6},
                     {"num_key_value_heads", 2}, {"max_position_embeddings", 64},
                     {"rms_norm_eps", 1e-5},     {"rope_theta", 500000.0},
                     {"hidden_act", "silu"},     {"eos_token_id", 2},
                     {"bos_token_id", 1}};

json with(json object, const json& changes) {
  object.merge_patch(changes);  // null removes a key
  return object;
}

class ModelConfigFile : public ::testing::Test {
 protected:
  Result<ModelConfig> load(const json& config, const json& generation = nullptr) {
    test::write_file(folder_.path() + "/config.json", config.dump());
    if (!generation.is_null()) {
      test::write_file(folder_.path() + "/generation_config.json", generation.dump());
    }
    return load_model_config(folder_.path());
  }
  // The message without the folder, or "ok".
  std::string message(const json& config, const json& generation = nullptr) {
    const auto result = load(config, generation);
    return result.ok() ? "ok" : result.status().message().substr(folder_.path().size() + 1);
  }
  test::TemporaryFolder folder_;
};

TEST_F(ModelConfigFile, ReadsTheKeysOfTransformers4) {
  const auto config = load(with(kLlama, {{"tie_word_embeddings", true},
                                         {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}));
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->family, Family::kLlama);
  EXPECT_EQ(config->head_dim, 4) << "24 / 6, since there is no head_dim";
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->rms_norm_eps, 1e-5);
  EXPECT_EQ(config->rope_theta, 500000.0);
  EXPECT_EQ(config->rope_scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(config->rope_scaling.factor, 2.0);
  EXPECT_TRUE(config->tie_embeddings);
  EXPECT_FALSE(config->attention_bias || config->mlp_bias || config->qk_norm);
  EXPECT_THAT(config->eos_ids, ElementsAre(2));
  EXPECT_EQ(config->bos_id, 1);
  EXPECT_EQ(config->pad_id, std::nullopt);
}

TEST_F(ModelConfigFile, ReadsTheKeysOfTransformers5) {
  const json rope = {{"rope_type", "llama3"},   {"rope_theta", 1e6},
                     {"factor", 8.0},           {"low_freq_factor", 1.0},
                     {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 32}};
  const auto config = load(with(kLlama, {{"rope_theta", nullptr}, {"rope_parameters", rope}}));
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->rope_theta, 1e6);
  EXPECT_EQ(config->rope_scaling, (RopeScaling{RopeScaling::Kind::kLlama3, 8.0, 1.0, 4.0, 32}));
}

TEST_F(ModelConfigFile, KnowsWhatEachFamilyImplies) {
  const auto qwen2 = load(with(kLlama, {{"model_type", "qwen2"}}));
  ASSERT_TRUE(qwen2.ok()) << qwen2.status().message();
  EXPECT_TRUE(qwen2->attention_bias);
  EXPECT_FALSE(qwen2->attention_output_bias);
  const auto qwen3 = load(with(kLlama, {{"model_type", "qwen3"}}));
  ASSERT_TRUE(qwen3.ok()) << qwen3.status().message();
  EXPECT_TRUE(qwen3->qk_norm);
  EXPECT_EQ(qwen3->head_dim, 128) << "the default of Qwen3";
  const auto biased = load(with(kLlama, {{"attention_bias", true}, {"mlp_bias", true}}));
  ASSERT_TRUE(biased.ok()) << biased.status().message();
  EXPECT_TRUE(biased->attention_bias && biased->attention_output_bias && biased->mlp_bias);
}

TEST_F(ModelConfigFile, PrefersTheEosListOfTheGenerationConfig) {
  EXPECT_THAT(load(with(kLlama, {{"eos_token_id", {3, 4}}}))->eos_ids, ElementsAre(3, 4));
  const auto config =
      load(kLlama, {{"eos_token_id", {7, 9}}, {"bos_token_id", 5}, {"pad_token_id", 6}});
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_THAT(config->eos_ids, ElementsAre(7, 9));
  EXPECT_EQ(config->bos_id, 1) << "config.json has one";
  EXPECT_EQ(config->pad_id, 6);
  EXPECT_THAT(load(kLlama, {{"temperature", 0.6}})->eos_ids, ElementsAre(2));
}

TEST_F(ModelConfigFile, SurvivesBeingWritten) {
  for (const json& change : std::vector<json>{
           {{"model_type", "llama"}, {"attention_bias", true}, {"eos_token_id", {2, 5}}},
           {{"model_type", "qwen2"}, {"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.5}}}},
           {{"model_type", "qwen3"},
            {"head_dim", 6},
            {"pad_token_id", 3},
            {"eos_token_id", nullptr}},
           {{"rope_scaling",
             {{"rope_type", "llama3"},
              {"factor", 8.0},
              {"low_freq_factor", 1.0},
              {"high_freq_factor", 4.0},
              {"original_max_position_embeddings", 16}}}}}) {
    const auto config = load(with(kLlama, change));
    ASSERT_TRUE(config.ok()) << config.status().message();
    const json written = json::parse(config_json(*config, "float32"));
    const auto again = load(written, json::parse(generation_config_json(*config)));
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(*again, *config) << written;
    EXPECT_EQ(written["torch_dtype"], "float32");
    // Readers of transformers 4 see the old names, those of 5 the new ones.
    EXPECT_EQ(written["rope_theta"], written["rope_parameters"]["rope_theta"]);
    json without_new = written;
    without_new.erase("rope_parameters");
    EXPECT_EQ(*load(without_new), *config);
    json without_old = written;
    without_old.erase("rope_theta");
    without_old.erase("rope_scaling");
    EXPECT_EQ(*load(without_old), *config);
  }
}

TEST_F(ModelConfigFile, NamesWhatIsNotSupported) {
  EXPECT_EQ(message(with(kLlama, {{"model_type", "gemma2"}})),
            "config.json: model_type 'gemma2' is not supported; supported are llama, qwen2, qwen3");
  EXPECT_EQ(message(with(kLlama, {{"hidden_act", "gelu"}})),
            "config.json: hidden_act 'gelu' is not supported; only silu is");
  EXPECT_EQ(message(with(kLlama, {{"quantization_config", {{"bits", 4}}}})),
            "config.json: 'quantization_config': quantised weights are not supported; use the F32, "
            "F16 or "
            "BF16 model");
  EXPECT_EQ(message(with(kLlama, {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}})),
            "config.json: rope_scaling: rope_type 'yarn' is not supported; supported are default, "
            "linear and "
            "llama3; remove 'rope_scaling' to use the model within the context it was trained on");
  EXPECT_EQ(message(with(kLlama, {{"partial_rotary_factor", 0.5}})),
            "config.json: 'partial_rotary_factor' must be 1, got 0.5; rotating a part of each head "
            "is not "
            "supported");
}

TEST_F(ModelConfigFile, RefusesSlidingWindowsOnlyWhereTheyAreUsed) {
  const json qwen = with(kLlama, {{"model_type", "qwen2"}, {"sliding_window", 4096}});
  EXPECT_EQ(message(qwen), "ok") << "use_sliding_window is off by default";
  EXPECT_EQ(message(with(qwen, {{"use_sliding_window", true}, {"max_window_layers", 2}})), "ok")
      << "none of the two layers";
  EXPECT_EQ(message(with(qwen, {{"use_sliding_window", true}, {"max_window_layers", 1}})),
            "config.json: 'use_sliding_window': sliding-window attention is not supported; every "
            "layer must "
            "attend to the whole context");
  EXPECT_THAT(message(with(qwen, {{"layer_types", {"full_attention", "sliding_attention"}}})),
              HasSubstr("'layer_types': sliding-window attention is not supported"));
}

TEST_F(ModelConfigFile, NamesMissingAndMistypedKeys) {
  EXPECT_EQ(message(with(kLlama, {{"model_type", nullptr}})),
            "config.json: key 'model_type' is missing");
  EXPECT_EQ(message(with(kLlama, {{"hidden_size", nullptr}})),
            "config.json: key 'hidden_size' is missing");
  EXPECT_EQ(message(with(kLlama, {{"hidden_size", "24"}})),
            "config.json: 'hidden_size' must be an integer, got \"24\"");
  EXPECT_EQ(message(with(kLlama, {{"hidden_size", 24.5}})),
            "config.json: 'hidden_size' must be an integer, got 24.5");
  EXPECT_EQ(message(with(kLlama, {{"rms_norm_eps", true}})),
            "config.json: 'rms_norm_eps' must be a number, got true");
  EXPECT_EQ(message(with(kLlama, {{"tie_word_embeddings", 1}})),
            "config.json: 'tie_word_embeddings' must be true or false, got 1");
  EXPECT_EQ(message(with(kLlama, {{"eos_token_id", {2, -1}}})),
            "config.json: 'eos_token_id' must be a token id or a list of them, got [2,-1]");
  EXPECT_EQ(message(with(kLlama, {{"bos_token_id", {1, 2}}})),
            "config.json: 'bos_token_id' must be one token id, got [1,2]");
  EXPECT_EQ(message(with(kLlama, {{"rope_scaling", {{"rope_type", "linear"}}}})),
            "config.json: rope_scaling: key 'factor' is missing");
  EXPECT_EQ(
      message(kLlama, {{"eos_token_id", "x"}}),
      "generation_config.json: 'eos_token_id' must be a token id or a list of them, got \"x\"");
}

TEST_F(ModelConfigFile, NamesValuesOutOfRange) {
  EXPECT_EQ(message(with(kLlama, {{"vocab_size", 0}})),
            "config.json: vocab_size must be in [1, 16777216], got 0");
  EXPECT_EQ(message(with(kLlama, {{"num_key_value_heads", 4}})),
            "config.json: num_kv_heads must divide num_heads 6, got 4");
  EXPECT_EQ(message(with(kLlama, {{"num_attention_heads", 7}})),
            "config.json: num_attention_heads must divide hidden_size 24 when there is no "
            "head_dim, got 7");
  EXPECT_EQ(message(with(kLlama, {{"num_attention_heads", 0}})),
            "config.json: num_attention_heads must divide hidden_size 24 when there is no "
            "head_dim, got 0");
  EXPECT_EQ(message(with(kLlama, {{"head_dim", 5}})), "config.json: head_dim must be even, got 5");
  EXPECT_EQ(message(with(kLlama, {{"rms_norm_eps", 0}})),
            "config.json: rms_norm_eps must be a positive number, got 0");
  EXPECT_EQ(message(with(kLlama, {{"rope_scaling", {{"rope_type", "linear"}, {"factor", 0.5}}}})),
            "config.json: rope_scaling.factor must be at least 1, got 0.5");
  EXPECT_EQ(message(with(kLlama, {{"eos_token_id", 100}})),
            "config.json: eos_ids must be a token id below vocab_size 100, got 100");
}

TEST_F(ModelConfigFile, NamesBrokenJson) {
  test::write_file(folder_.path() + "/config.json", "{\"a\": 1,\n \"a\" 2}");
  EXPECT_THAT(load_model_config(folder_.path()).status().message(),
              HasSubstr("/config.json: not valid JSON: parse error at line 2, column 6"));
  test::write_file(folder_.path() + "/config.json", "{\"a\": {\"b\": 1, \"b\": 2}}");
  EXPECT_EQ(load_model_config(folder_.path()).status().message(),
            folder_.path() + "/config.json: duplicate key 'b'");
}

TEST(ModelConfig, RefusesWhatAFamilyCannotSay) {
  ModelConfig config;
  config.vocab_size = config.hidden_size = config.intermediate_size = config.num_layers = 2;
  config.num_heads = config.num_kv_heads = 1;
  config.head_dim = 2;
  config.max_position_embeddings = 8;
  ASSERT_TRUE(validate(config).ok()) << validate(config).message();
  config.attention_bias = true;
  EXPECT_EQ(validate(config).message(),
            "attention_output_bias must equal attention_bias for llama, got false and true");
  config.family = Family::kQwen2;
  ASSERT_TRUE(validate(config).ok()) << validate(config).message();
  config.mlp_bias = true;
  EXPECT_EQ(validate(config).message(), "mlp_bias must be false for qwen2");
  config.mlp_bias = false;
  config.qk_norm = true;
  EXPECT_EQ(validate(config).message(), "qk_norm must be false for qwen2");
}

// By hand, V 10, D 4, F 6, one layer, H 2, G 1, K 3: embedding 40, norms 4 + 4 + 4, q 6*4, k and v
// 3*4 each, o 4*6, MLP 3 * 6*4, q and k norm 3 each, head 40.
TEST(WeightSpecs, CountByHand) {
  ModelConfig config;
  config.family = Family::kQwen3;
  config.qk_norm = true;
  config.vocab_size = 10;
  config.hidden_size = 4;
  config.intermediate_size = 6;
  config.num_layers = 1;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 3;
  EXPECT_EQ(num_parameters(config), 40 + 12 + 24 + 24 + 24 + 72 + 6 + 40);
  const auto specs = weight_specs(config);
  EXPECT_EQ(specs.front(), (WeightSpec{"model.embed_tokens.weight", {10, 4}}));
  EXPECT_EQ(specs[2], (WeightSpec{"model.layers.0.self_attn.q_proj.weight", {6, 4}}));
  EXPECT_EQ(specs.back(), (WeightSpec{"lm_head.weight", {10, 4}}));
  config.tie_embeddings = true;
  EXPECT_EQ(weight_specs(config).back().hf_name, "model.norm.weight");
}

}  // namespace
}  // namespace gradus::model
