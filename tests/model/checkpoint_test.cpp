// SPDX-License-Identifier: Apache-2.0
#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/support/files.h"

namespace gradus::model {
namespace {

using test::read_file;
using test::TemporaryFolder;
using test::write_file;
using testing::HasSubstr;

const std::string kTinyModels = "tests/golden/tiny_models/";

int64_t num_values(const WeightSpec& spec) {
  int64_t count = 1;
  for (const int64_t extent : spec.shape) count *= extent;
  return count;
}

// The smallest model there is: 1 layer, width 2.
ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = 3;
  config.hidden_size = 2;
  config.intermediate_size = 2;
  config.num_layers = 1;
  config.num_heads = 1;
  config.num_kv_heads = 1;
  config.head_dim = 2;
  config.max_position_embeddings = 8;
  config.eos_ids = {2};
  return config;
}

// Weight i of every tensor is i / 2.
Status count_up(const WeightSpec& spec, float* out) {
  for (int64_t i = 0; i < num_values(spec); ++i) out[i] = static_cast<float>(i) / 2;
  return {};
}

class TinyModels : public testing::TestWithParam<const char*> {};

TEST_P(TinyModels, ReadAsTransformersReadsThem) {
  const std::string dir = kTinyModels + GetParam();
  const auto reader = CheckpointReader::open(dir);
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  const auto expected = nlohmann::json::parse(read_file(dir + "/expected.json"))["weights"];
  const std::vector<WeightSpec> specs = weight_specs(reader->config());
  EXPECT_EQ(specs.size(), expected.size());
  for (const WeightSpec& spec : specs) {
    ASSERT_TRUE(expected.contains(spec.hf_name)) << spec.hf_name;
    const auto& want = expected[spec.hf_name];
    EXPECT_EQ(nlohmann::json(spec.shape), want["shape"]);
    std::vector<float> values(static_cast<size_t>(num_values(spec)));
    ASSERT_TRUE(reader->read_f32(spec.hf_name, spec.shape, values.data()).ok());
    for (size_t i = 0; i < 3; ++i)
      EXPECT_EQ(values[i], want["first"][i].get<float>()) << spec.hf_name;
    double sum = 0;
    for (const float value : values) sum += static_cast<double>(value) * value;
    EXPECT_NEAR(sum, want["sum_of_squares"].get<double>(), 1e-9 * sum) << spec.hf_name;
  }
}

// Writing what was read gives the same weights, and for F32 models in one file the same bytes.
TEST_P(TinyModels, SurviveBeingWrittenInOneFileAndInShards) {
  const std::string dir = kTinyModels + GetParam();
  const auto reader = CheckpointReader::open(dir);
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  const auto source = [&](const WeightSpec& spec, float* out) {
    return reader->read_f32(spec.hf_name, spec.shape, out);
  };
  for (const int64_t max_shard_bytes : {int64_t{1} << 30, int64_t{40000}}) {
    const TemporaryFolder folder;
    const std::string copy = folder.path() + "/copy";
    ASSERT_TRUE(write_checkpoint(copy, reader->config(), source,
                                 {.tokenizer_dir = dir, .max_shard_bytes = max_shard_bytes})
                    .ok());
    EXPECT_EQ(std::filesystem::exists(copy + "/model.safetensors"), max_shard_bytes > 100000);
    const auto again = CheckpointReader::open(copy);
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(again->config(), reader->config());
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                             "generation_config.json"}) {
      EXPECT_EQ(read_file(copy + "/" + name), read_file(dir + "/" + name)) << name;
    }
    for (const WeightSpec& spec : weight_specs(reader->config())) {
      std::vector<float> first(static_cast<size_t>(num_values(spec)));
      std::vector<float> second(first.size());
      ASSERT_TRUE(reader->read_f32(spec.hf_name, spec.shape, first.data()).ok());
      ASSERT_TRUE(again->read_f32(spec.hf_name, spec.shape, second.data()).ok());
      EXPECT_EQ(first, second) << spec.hf_name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllFamilies, TinyModels,
                         testing::Values("llama3_rope", "llama_linear_rope", "qwen2", "qwen3"),
                         [](const auto& model) {
                           std::string name = model.param;
                           std::erase(name, '_');
                           return name;
                         });

// The weights of a BF16 model are exact in BF16, and tensors stand in the order in which
// transformers saved them.
TEST(WriteCheckpoint, ReproducesAFileOfTransformersByteForByte) {
  const std::string dir = kTinyModels + "qwen3";
  const auto reader = CheckpointReader::open(dir);
  ASSERT_TRUE(reader.ok());
  const TemporaryFolder folder;
  ASSERT_TRUE(write_checkpoint(folder.path(), reader->config(),
                               [&](const WeightSpec& spec, float* out) {
                                 return reader->read_f32(spec.hf_name, spec.shape, out);
                               },
                               {.dtype = WeightDType::kBF16, .tokenizer_dir = dir})
                  .ok());
  EXPECT_TRUE(read_file(folder.path() + "/model.safetensors") ==
              read_file(dir + "/model.safetensors"));
}

TEST(WriteCheckpoint, PassesOnTheErrorOfTheSourceAndLeavesNoFile) {
  const TemporaryFolder folder;
  const Status status =
      write_checkpoint(folder.path(), small_config(),
                       [](const WeightSpec&, float*) { return data_loss("somewhere: broken"); });
  EXPECT_EQ(status.message(), "somewhere: broken");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(WriteCheckpoint, ReplacesShardsByOneFileAndBack) {
  const TemporaryFolder folder;
  const std::string single = folder.path() + "/model.safetensors";
  for (const int64_t max_shard_bytes : {1 << 20, 40, 1 << 20}) {
    ASSERT_TRUE(write_checkpoint(folder.path(), small_config(), count_up,
                                 {.max_shard_bytes = max_shard_bytes})
                    .ok());
    EXPECT_EQ(std::filesystem::exists(single), max_shard_bytes > 40);
    EXPECT_EQ(std::filesystem::exists(single + ".index.json"), max_shard_bytes == 40);
    EXPECT_TRUE(CheckpointReader::open(folder.path()).ok());
  }
}

class BrokenCheckpoint : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(write_checkpoint(folder_.path(), small_config(), count_up).ok());
  }
  // The message of open(), without the path of the weights.
  std::string message() {
    const auto reader = CheckpointReader::open(folder_.path());
    if (reader.ok()) return "ok";
    const std::string text = reader.status().message();
    const std::string prefix = folder_.path() + "/model.safetensors: ";
    return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
  }
  void edit_config(const std::string& key, const nlohmann::json& value) {
    const std::string path = folder_.path() + "/config.json";
    auto config = nlohmann::json::parse(read_file(path));
    config[key] = value;
    write_file(path, config.dump());
  }
  TemporaryFolder folder_;
};

TEST_F(BrokenCheckpoint, ListsMissingWeightsOfAnotherDepth) {
  edit_config("num_hidden_layers", 2);
  EXPECT_EQ(
      message(),
      "9 tensors missing, first 'model.layers.1.input_layernorm.weight' [2]; the weights do not "
      "belong to config.json");
}

TEST_F(BrokenCheckpoint, ListsMissingAndWronglyShapedWeightsTogether) {
  edit_config("intermediate_size", 6);
  edit_config("tie_word_embeddings", true);
  edit_config("vocab_size", 4);
  edit_config("model_type", "qwen3");
  edit_config("head_dim", 2);
  EXPECT_EQ(message(),
            "2 tensors missing, first 'model.layers.0.self_attn.q_norm.weight' [2]; 4 tensors of "
            "the wrong "
            "shape, first 'model.embed_tokens.weight' [3, 2] where config.json implies [4, 2]; the "
            "weights "
            "do not belong to config.json");
}

TEST_F(BrokenCheckpoint, NamesAnUnknownWeight) {
  ModelConfig config = small_config();
  config.attention_bias = config.attention_output_bias = true;
  ASSERT_TRUE(write_checkpoint(folder_.path(), config, count_up).ok());
  edit_config("attention_bias", false);
  EXPECT_EQ(
      message(),
      "4 tensors unknown, first 'model.layers.0.self_attn.k_proj.bias' [2]; the weights do not "
      "belong to config.json");
}

TEST_F(BrokenCheckpoint, AcceptsAStoredHeadOnlyIfItIsTheTiedEmbedding) {
  edit_config("tie_word_embeddings", true);
  EXPECT_EQ(message(), "ok") << "embedding and head count up alike";
  ASSERT_TRUE(
      write_checkpoint(folder_.path(), small_config(), [](const WeightSpec& spec, float* out) {
        std::fill_n(out, num_values(spec), spec.hf_name == "lm_head.weight" ? 1.0f : 2.0f);
        return Status();
      }).ok());
  edit_config("tie_word_embeddings", true);
  EXPECT_EQ(
      message(),
      "'lm_head.weight' differs from 'model.embed_tokens.weight' but config.json ties them; set "
      "tie_word_embeddings to false");
}

TEST_F(BrokenCheckpoint, PartsOfAMatrixAreItsRowsWhateverTheirNumber) {
  ASSERT_TRUE(
      write_checkpoint(folder_.path(), small_config(), [](const WeightSpec& spec, float* out) {
        for (int64_t i = 0; i < static_cast<int64_t>(num_values(spec)); ++i) {
          out[i] = 0.5f + static_cast<float>(i);
        }
        return Status();
      }).ok());
  const auto reader = CheckpointReader::open(folder_.path());
  ASSERT_TRUE(reader.ok());
  for (const int64_t part_rows : {1, 2, 3, 16}) {
    std::vector<float> seen(6);
    ASSERT_TRUE(reader
                    ->read_f32_parts("lm_head.weight", std::vector<int64_t>{3, 2}, part_rows,
                                     [&](int64_t first_row, std::span<const float> values) {
                                       std::copy(values.begin(), values.end(),
                                                 seen.begin() + first_row * 2);
                                     })
                    .ok());
    EXPECT_EQ(seen, (std::vector<float>{0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f})) << part_rows;
  }
}

TEST_F(BrokenCheckpoint, CountsNanAndInfiniteWeightsByTensor) {
  ASSERT_TRUE(
      write_checkpoint(folder_.path(), small_config(), [](const WeightSpec& spec, float* out) {
        std::fill_n(out, num_values(spec), 1.0f);
        if (spec.hf_name == "lm_head.weight") {
          out[1] = std::numeric_limits<float>::quiet_NaN();
          out[4] = -std::numeric_limits<float>::infinity();
        }
        return Status();
      }).ok());
  const auto reader = CheckpointReader::open(folder_.path());
  ASSERT_TRUE(reader.ok());
  float out[6];
  const std::vector<int64_t> shape = {3, 2};
  EXPECT_TRUE(reader->read_f32("model.embed_tokens.weight", shape, out).ok());
  EXPECT_EQ(reader->read_f32_parts("lm_head.weight", shape, 2, [](int64_t, auto) {}).message(),
            reader->read_f32("lm_head.weight", shape, out).message());
  EXPECT_EQ(
      reader->read_f32("lm_head.weight", std::vector<int64_t>{3, 2}, out).message(),
      folder_.path() +
          "/model.safetensors: tensor 'lm_head.weight': 2 of 6 values are NaN or infinite; the "
          "weights are broken");
}

TEST_F(BrokenCheckpoint, NamesADirectoryWithoutWeights) {
  std::filesystem::remove(folder_.path() + "/model.safetensors");
  EXPECT_EQ(message(),
            folder_.path() +
                ": no model.safetensors or model.safetensors.index.json; expected a Hugging "
                "Face model directory");
  write_file(folder_.path() + "/pytorch_model.bin", "");
  EXPECT_THAT(message(), HasSubstr("pytorch_model.bin is not read, save it as safetensors with "
                                   "save_pretrained of transformers"));
}

TEST(CheckpointReader, NamesAMissingConfig) {
  EXPECT_EQ(CheckpointReader::open("no/such/dir").status().message(),
            "no/such/dir/config.json: cannot open: No such file or directory");
}

}  // namespace
}  // namespace gradus::model
