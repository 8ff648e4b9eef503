// SPDX-License-Identifier: Apache-2.0
#include "model/transformer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/device_transformer.h"
#include "tests/support/model_rows.h"
#include "tests/support/tolerances.h"

namespace gradus::model {
namespace {

using testing::hidden_rows;
using testing::random_tokens;
using testing::tiny_model_dir;

class TinyModel : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto loaded = Transformer::load(tiny_model_dir(GetParam()));
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    transformer_ = std::move(*loaded);
  }
  std::unique_ptr<Transformer> transformer_;
};

TEST_P(TinyModel, LogitsMatchTransformers) {
  const auto golden =
      nlohmann::json::parse(std::ifstream(tiny_model_dir(GetParam()) + "/expected.json"));
  ASSERT_FALSE(golden["cases"].empty());
  for (const auto& test_case : golden["cases"]) {
    const auto ids = test_case["ids"].get<std::vector<int32_t>>();
    KvCache cache(transformer_->config(), static_cast<int64_t>(ids.size()) / 64 + 1);
    std::vector<int32_t> table(static_cast<size_t>(cache.num_pages()));
    std::iota(table.begin(), table.end(), 0);
    const std::vector<float> hidden = hidden_rows(*transformer_, cache, table, ids, 0);
    std::vector<float> logits(static_cast<size_t>(transformer_->padded_vocab_size()));
    transformer_->head(hidden.data() + hidden.size() - transformer_->config().hidden_size, 1,
                       logits.data());
    const auto& expected = test_case["last_logits"];
    ASSERT_EQ(static_cast<int64_t>(expected.size()), transformer_->config().vocab_size);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(logits[i], expected[i].get<double>(), testing::kLogits)
          << GetParam() << ", " << ids.size() << " tokens, logit " << i;
    }
  }
}

// The row contract of the whole model: a sequence of 300 tokens whole, in chunks of 1, 17 and 64,
// and behind another sequence, has equal bits in every hidden row.
TEST_P(TinyModel, HiddenBitsDoNotDependOnChunksOrNeighbours) {
  const std::vector<int32_t> tokens = random_tokens(300, transformer_->config().vocab_size, 4);
  const size_t width = static_cast<size_t>(transformer_->config().hidden_size);
  const std::vector<int32_t> table = {9, 2, 7, 0, 5};
  KvCache cache(transformer_->config(), 12);
  const std::vector<float> whole = hidden_rows(*transformer_, cache, table, tokens, 0);
  for (const size_t chunk : {size_t{1}, size_t{17}, size_t{64}}) {
    KvCache other(transformer_->config(), 12);
    for (size_t first = 0; first < tokens.size(); first += chunk) {
      const size_t count = std::min(chunk, tokens.size() - first);
      const std::vector<int32_t> part(tokens.begin() + static_cast<int64_t>(first),
                                      tokens.begin() + static_cast<int64_t>(first + count));
      const std::vector<float> hidden =
          hidden_rows(*transformer_, other, table, part, static_cast<int64_t>(first));
      ASSERT_EQ(
          std::memcmp(hidden.data(), whole.data() + first * width, count * width * sizeof(float)),
          0)
          << GetParam() << " in chunks of " << chunk << " at " << first;
    }
  }
  std::vector<int32_t> both = random_tokens(80, transformer_->config().vocab_size, 5);
  both.insert(both.end(), tokens.begin(), tokens.end());
  std::vector<int32_t> positions(both.size());
  std::iota(positions.begin(), positions.begin() + 80, 0);
  std::iota(positions.begin() + 80, positions.end(), 0);
  const std::vector<int32_t> other_table = {1, 3};
  const std::vector<kernels::AttentionRun> runs = {{0, 80, 0, other_table.data()},
                                                   {80, 300, 0, table.data()}};
  std::vector<float> hidden(both.size() * width);
  KvCache other(transformer_->config(), 12);
  transformer_->forward({both, positions, runs, {}}, other, hidden.data());
  EXPECT_EQ(std::memcmp(hidden.data() + 80 * width, whole.data(), whole.size() * sizeof(float)), 0);
}

TEST(DeviceTransformer, NamesWhatItsKernelsCannotRun) {
  ModelConfig config = {.family = Family::kQwen2,
                        .vocab_size = 100,
                        .hidden_size = 64,
                        .intermediate_size = 72,
                        .num_layers = 1,
                        .num_heads = 2,
                        .num_kv_heads = 1,
                        .head_dim = 64,
                        .max_position_embeddings = 128,
                        .attention_bias = true};
  const auto message = [](const ModelConfig& changed) {
    return DeviceTransformer::check_supported(changed).message();
  };
  EXPECT_EQ(message(config), "");
  ModelConfig changed = config;
  changed.head_dim = 32;
  EXPECT_EQ(message(changed),
            "device cuda: head_dim is 32; its kernels need 64 or 128; run this model on the "
            "CPU");
  changed = config;
  changed.hidden_size = 60;
  EXPECT_EQ(message(changed),
            "device cuda: hidden_size is 60; its kernels need a multiple of 8; run this model "
            "on the CPU");
  changed = config;
  changed.intermediate_size = 36;
  EXPECT_EQ(
      message(changed),
      "device cuda: intermediate_size is 36; its kernels need a multiple of 8; run this model "
      "on the CPU");
  changed = config;
  changed.num_heads = 17;
  EXPECT_EQ(message(changed),
            "device cuda: num_heads / num_kv_heads is 17; its kernels need at most 16; run this "
            "model on the CPU");
  EXPECT_EQ(message(with_score_head(config)),
            "device cuda: the model has a score head; its kernels need a language model; run this "
            "model on the CPU");
}

INSTANTIATE_TEST_SUITE_P(Families, TinyModel, ::testing::ValuesIn(testing::tiny_models()),
                         [](const auto& parameter) {
                           std::string name;
                           for (const char c : parameter.param) {
                             if (c != '_') name += c;
                           }
                           return name;
                         });

}  // namespace
}  // namespace gradus::model
