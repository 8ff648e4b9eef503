// SPDX-License-Identifier: Apache-2.0
#include "retriever/embedder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/support/files.h"
#include "tests/support/kernel_settings.h"
#include "tests/support/tolerances.h"

namespace gradus::retriever {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr const char* kTiny = "tests/golden/retrieval/tiny_bert";
constexpr const char* kMiniLm = ".deps/models/all-minilm-l6-v2";

std::vector<float> from_base64(const std::string& text) {
  const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    bits = bits << 6 | static_cast<uint32_t>(alphabet.find(c));
    if ((count += 6) >= 8) bytes.push_back(static_cast<char>(bits >> (count -= 8)));
  }
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

std::vector<std::string> texts_of(const json& rows) {
  std::vector<std::string> texts;
  for (const json& row : rows) texts.push_back(row["text"]);
  return texts;
}

// Vectors of `rows` against sentence-transformers'.
void expect_vectors(Embedder& embedder, const std::vector<std::string>& texts,
                    const std::vector<std::string>& expected) {
  const Result<std::vector<float>> vectors = embedder.embed(texts);
  ASSERT_TRUE(vectors.ok()) << vectors.status().message();
  const size_t d = static_cast<size_t>(embedder.width());
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<float> want = from_base64(expected[i]);
    ASSERT_EQ(want.size(), d);
    const std::span<const float> got = std::span(*vectors).subspan(i * d, d);
    EXPECT_NEAR(dot(got, got), 1, 1e-6);
    for (size_t c = 0; c < d; ++c) {
      ASSERT_NEAR(got[c], want[c], testing::kEmbedding) << texts[i] << ", component " << c;
    }
  }
}

std::vector<std::string> strings(const json& list) { return list.get<std::vector<std::string>>(); }

TEST(Embedder, GivesTheIdsAndVectorsOfSentenceTransformers) {
  const json expected = json::parse(test::read_file(std::string(kTiny) + "/expected.json"));
  const auto embedder = Embedder::load(kTiny);
  ASSERT_TRUE(embedder.ok()) << embedder.status().message();
  EXPECT_EQ((*embedder)->max_tokens(), 140);
  std::vector<std::string> vectors;
  for (const json& row : expected["mean"]) {
    EXPECT_EQ(json(*(*embedder)->tokenize(row["text"])), row["ids"]) << row["text"];
    vectors.push_back(row["vector"]);
  }
  expect_vectors(**embedder, texts_of(expected["mean"]), vectors);
}

TEST(Embedder, TakesTheFirstTokenWhereTheModelSaysSo) {
  const json expected = json::parse(test::read_file(std::string(kTiny) + "/expected.json"));
  const test::TemporaryFolder folder;
  std::filesystem::copy(kTiny, folder.path(), std::filesystem::copy_options::recursive);
  std::filesystem::create_directory(folder.path() + "/1_Pooling");
  test::write_file(folder.path() + "/1_Pooling/config.json",
                   R"({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})");
  const auto embedder = Embedder::load(folder.path());
  ASSERT_TRUE(embedder.ok()) << embedder.status().message();
  expect_vectors(**embedder, texts_of(expected["mean"]), strings(expected["first"]));
  EXPECT_NE((*embedder)->hash(), (*Embedder::load(kTiny))->hash());
}

TEST(Embedder, AVectorDoesNotDependOnCompanyThreadsOrInstructionSet) {
  const json expected = json::parse(test::read_file(std::string(kTiny) + "/expected.json"));
  const std::vector<std::string> texts = texts_of(expected["mean"]);
  const auto embedder = std::move(Embedder::load(kTiny)).value();
  const std::vector<float> together = *embedder->embed(texts);
  const size_t d = static_cast<size_t>(embedder->width());
  testing::for_each_setting([&] {
    for (size_t i = 0; i < texts.size(); i += 7) {
      const std::vector<float> alone = *embedder->embed(std::span(texts).subspan(i, 1));
      EXPECT_TRUE(testing::same_bits(alone, std::span(together).subspan(i * d, d))) << texts[i];
    }
    EXPECT_TRUE(testing::same_bits(*embedder->embed(texts), together));
  });
  EXPECT_TRUE(embedder->embed({})->empty());
}

TEST(Embedder, NamesWhatIsWrong) {
  const auto embedder = std::move(Embedder::load(kTiny)).value();
  EXPECT_THAT(embedder->embed(std::vector<std::string>{"a", "b\xFF"}).status().message(),
              HasSubstr("text 1: "));
  EXPECT_EQ(Embedder::load("nowhere").status().code(), StatusCode::kNotFound);
  const auto with_config = [](const char* key, const json& value) {
    const test::TemporaryFolder folder;
    std::filesystem::copy(kTiny, folder.path(), std::filesystem::copy_options::recursive);
    json config = json::parse(test::read_file(folder.path() + "/config.json"));
    config[key] = value;
    test::write_file(folder.path() + "/config.json", config.dump());
    std::string message = Embedder::load(folder.path()).status().message();
    return message.substr(message.find("/config.json") == std::string::npos
                              ? message.find_last_of('/') + 1
                              : message.find("/config.json") + 1);
  };
  EXPECT_EQ(with_config("model_type", "roberta"),
            "config.json: model_type is \"roberta\"; served here: \"bert\"");
  EXPECT_EQ(with_config("hidden_act", "gelu_new"),
            "config.json: hidden_act is \"gelu_new\"; served here: \"gelu\"");
  EXPECT_EQ(with_config("num_attention_heads", 5),
            "config.json: hidden_size 32 and intermediate_size 48 must be multiples of 16, and 5 "
            "heads must divide the former into even widths of at most 256");
  EXPECT_EQ(with_config("num_hidden_layers", 3),
            "model.safetensors: no tensor 'encoder.layer.2.attention.self.query.weight'; is it a "
            "BERT encoder?");
  EXPECT_EQ(with_config("intermediate_size", 64),
            "model.safetensors: tensor 'encoder.layer.0.intermediate.dense.weight' has the shape "
            "[48, 32], config.json asks for [64, 32]");
}

class MiniLm : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(std::string(kMiniLm) + "/config.json"))
        << kMiniLm << " is missing; run tools/fetch_encoder";
    embedder_ = std::move(Embedder::load(kMiniLm)).value();
  }
  std::unique_ptr<Embedder> embedder_;
};

// Published in the documentation of sentence-transformers.
TEST_F(MiniLm, HasTheTwelvePublishedCosines) {
  const std::vector<std::string> texts = {
      "The weather is lovely today.", "It's so sunny outside!",    "He drove to the stadium.",
      "The new movie is awesome",     "The cat sits outside",      "A man is playing guitar",
      "The dog plays in the garden",  "The new movie is so great", "A woman watches TV"};
  const std::vector<float> vectors = *embedder_->embed(texts);
  const struct {
    size_t a, b;
    double cosine;
  } published[] = {{0, 1, .6660}, {0, 2, .1046},  {1, 2, .1411},  {3, 6, .0543},
                   {3, 7, .8939}, {3, 8, -.0502}, {4, 6, .2838},  {4, 7, -.0029},
                   {4, 8, .1310}, {5, 6, .2277},  {5, 7, -.0136}, {5, 8, -.0327}};
  for (const auto& [a, b, cosine] : published) {
    EXPECT_NEAR(
        dot(std::span(vectors).subspan(a * 384, 384), std::span(vectors).subspan(b * 384, 384)),
        cosine, 5e-5)  // half of the last digit
        << texts[a] << " / " << texts[b];
  }
}

TEST_F(MiniLm, GivesTheIdsAndVectorsOfSentenceTransformers) {
  const json expected = json::parse(test::read_file("tests/golden/retrieval/minilm.json"));
  EXPECT_EQ(embedder_->max_tokens(), 256);
  std::vector<std::string> vectors;
  for (const json& row : expected["rows"]) {
    EXPECT_EQ(json(*embedder_->tokenize(row["text"])), row["ids"]) << row["text"];
    vectors.push_back(row["vector"]);
  }
  expect_vectors(*embedder_, texts_of(expected["rows"]), vectors);
}

}  // namespace
}  // namespace gradus::retriever
