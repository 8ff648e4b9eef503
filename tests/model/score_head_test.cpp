// SPDX-License-Identifier: Apache-2.0
// A score head on the one forward: reward models and critics.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/gemm.h"
#include "model/safetensors.h"
#include "model/sequence_scorer.h"
#include "model/training_pass.h"
#include "tests/support/files.h"
#include "tests/support/gradient_reference.h"
#include "tests/support/model_rows.h"
#include "tests/support/tolerances.h"

namespace gradus::model {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::tiny_model_dir;

// A tiny model under the score head of the golden file: weight i is 0.3 cos(i).
std::unique_ptr<Transformer> scorer(const std::string& name) {
  auto transformer = Transformer::with_score_head(*testing::tiny_model(name), 1);
  const int64_t width = transformer->config().hidden_size;
  std::vector<float> weight(static_cast<size_t>(width));
  for (size_t i = 0; i < weight.size(); ++i) {
    weight[i] = static_cast<float>(0.3 * std::cos(static_cast<double>(i)));
  }
  kernels::pack_weight(weight.data(), width, 1, width,
                       transformer->parameters() + transformer->layout().head);
  return transformer;
}

Status write(const Transformer& transformer, const std::string& dir) {
  return write_checkpoint(dir, transformer.config(), [&](const WeightSpec& spec, float* out) {
    return read_parameter(transformer.layout(), transformer.parameters(), spec, out);
  });
}

// The score of the last of `ids`.
float score_of(Transformer& transformer, std::vector<int32_t> ids) {
  const data::PackGroup group{std::move(ids), {{0}}};
  TrainingPass pass(transformer, false);
  pass.forward(data::make_pack({&group, 1}), 1.0f, false);
  return pass.logprobs()[0];
}

TEST(ScoreHead, ValuesAndGradientsMatchTheDoublePrecisionReference) {
  const json golden = json::parse(std::ifstream("tests/golden/preferences.json"))["heads"];
  for (const std::string& name : testing::tiny_models()) {
    const json& expected = golden[name];
    const std::unique_ptr<Transformer> transformer = scorer(name);
    const data::PackGroup group{expected["prompt"].get<std::vector<int32_t>>(),
                                expected["responses"].get<std::vector<std::vector<int32_t>>>()};
    const data::Pack pack = data::make_pack({&group, 1});
    for (const bool checkpointing : {false, true}) {
      TrainingPass pass(*transformer, checkpointing);
      pass.forward(pack, 1.0f, true);
      std::vector<float> slopes;
      for (size_t i = 0; i < pack.targets.size(); ++i) {
        EXPECT_NEAR(pass.logprobs()[i], expected["values"][i].get<double>(), testing::kLogits);
        slopes.push_back(0.5f + 0.1f * static_cast<float>(i));
      }
      Gradients gradients(transformer->layout());
      gradients.clear();
      pass.backward(slopes, std::vector<float>(slopes.size(), 0.0f), gradients);
      gradients.finish(transformer->layout(), transformer->config().hidden_size);
      testing::expect_gradients(*transformer, gradients, expected["gradients"], name);
    }
  }
}

// What transformers' classifier says of whole sequences.
TEST(ScoreHead, ScoreOfTheLastTokenIsThatOfTransformers) {
  const json golden = json::parse(std::ifstream("tests/golden/preferences.json"))["heads"];
  for (const std::string& name : testing::tiny_models()) {
    const std::unique_ptr<Transformer> transformer = scorer(name);
    for (size_t i = 0; i < 2; ++i) {
      std::vector<int32_t> ids = golden[name]["prompt"];
      for (const json& id : golden[name]["responses"][i]) ids.push_back(id);
      EXPECT_NEAR(score_of(*transformer, ids), golden[name]["scores"][i].get<double>(),
                  testing::kLogits)
          << name;
    }
  }
}

// A score is a function of its own row: alone, packed behind others, and of a critic's values
// beside each other.
TEST(ScoreHead, BitsDoNotDependOnWhatElseIsInThePack) {
  for (const std::string& name : testing::tiny_models()) {
    const std::unique_ptr<Transformer> transformer = scorer(name);
    const int64_t vocab = transformer->config().vocab_size;
    const data::PackGroup group{
        testing::random_tokens(37, vocab, 1),
        {testing::random_tokens(20, vocab, 2), testing::random_tokens(3, vocab, 3)}};
    const std::vector<data::PackGroup> groups = {
        {testing::random_tokens(90, vocab, 4), {testing::random_tokens(150, vocab, 5)}}, group};
    TrainingPass pass(*transformer, false);
    pass.forward(data::make_pack(groups), 1.0f, false);
    size_t target = 150;
    for (const std::vector<int32_t>& response : group.responses) {
      std::vector<int32_t> ids = group.prompt;
      for (const int32_t token : response) {
        const float alone = score_of(*transformer, ids);
        ASSERT_EQ(std::memcmp(&alone, &pass.logprobs()[target++], sizeof(float)), 0) << name;
        ids.push_back(token);
      }
    }
    EXPECT_EQ(target, pass.logprobs().size());
  }
}

TEST(ScoreHead, ADirectoryIsAClassifierOfOneLabelAndReadsBackTheSame) {
  for (const std::string& name : testing::tiny_models()) {
    const test::TemporaryFolder folder;
    const std::unique_ptr<Transformer> transformer = scorer(name);
    ASSERT_TRUE(write(*transformer, folder.path()).ok());
    const json config = json::parse(test::read_file(folder.path() + "/config.json"));
    EXPECT_THAT(config["architectures"][0].get<std::string>(),
                HasSubstr("ForSequenceClassification"));
    EXPECT_EQ(config["id2label"], json::parse(R"({"0": "LABEL_0"})"));
    const auto read = Transformer::load(folder.path());
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_TRUE((*read)->config() == transformer->config());
    EXPECT_EQ(std::memcmp((*read)->parameters(), transformer->parameters(),
                          static_cast<size_t>(transformer->layout().size) * sizeof(float)),
              0);
  }
}

TEST(ScoreHead, OfAWrongShapeOrOfSeveralLabelsIsRefused) {
  const test::TemporaryFolder folder;
  ASSERT_TRUE(write(*scorer("qwen2"), folder.path()).ok());
  const std::string path = folder.path() + "/config.json";
  json config = json::parse(test::read_file(path));
  config["id2label"]["1"] = "LABEL_1";
  test::write_file(path, config.dump());
  EXPECT_THAT(Transformer::load(folder.path()).status().message(),
              HasSubstr("'Qwen2ForSequenceClassification' has 2 labels; a reward model or critic "
                        "gives one number: it has 1 (id2label)"));
  config.erase("id2label");
  test::write_file(path, config.dump());
  EXPECT_THAT(Transformer::load(folder.path()).status().message(), HasSubstr("has 2 labels"));
  config["num_labels"] = 1;
  test::write_file(path, config.dump());
  EXPECT_TRUE(Transformer::load(folder.path()).ok());
  // A head of two rows in the file.
  std::vector<SafetensorsSpec> entries;
  for (const WeightSpec& spec : weight_specs(scorer("qwen2")->config())) {
    entries.push_back({spec.hf_name, "F32", spec.shape});
    if (spec.hf_name == "score.weight") entries.back().shape[0] = 2;
  }
  auto writer = SafetensorsWriter::create(folder.path() + "/model.safetensors", entries);
  ASSERT_TRUE(writer.ok());
  for (const SafetensorsSpec& entry : entries) {
    int64_t size = 1;
    for (const int64_t extent : entry.shape) size *= extent;
    ASSERT_TRUE(writer->append_f32(std::vector<float>(static_cast<size_t>(size), 0.5f)).ok());
  }
  ASSERT_TRUE(writer->finish().ok());
  EXPECT_THAT(Transformer::load(folder.path()).status().message(),
              HasSubstr("1 tensor of the wrong shape, first 'score.weight' [2, 48] where "
                        "config.json implies [1, 48]"));
}

// A critic starts near 0, the same for a seed; the body's weights are the policy's.
TEST(ScoreHead, StartsSmallOnTheWeightsOfTheLanguageModel) {
  const auto policy = Transformer::load(tiny_model_dir("qwen2"));
  ASSERT_TRUE(policy.ok());
  const auto one = Transformer::with_score_head(**policy, 1);
  const auto again = Transformer::with_score_head(**policy, 1);
  const auto other = Transformer::with_score_head(**policy, 2);
  const auto hash = [](const Transformer& model) {
    return hash_parameters(model.parameters(), model.layout().size);
  };
  EXPECT_EQ(hash(*one), hash(*again));
  EXPECT_NE(hash(*one), hash(*other));
  EXPECT_EQ(std::memcmp(one->parameters(), (*policy)->parameters(),
                        static_cast<size_t>(one->layout().head) * sizeof(float)),
            0);
  EXPECT_LT(std::fabs(score_of(*one, {1, 2, 3})), 1.0f);
  EXPECT_NE(score_of(*one, {1, 2, 3}), 0.0f);
}

// transformers scores the last token that is not padding; an end token that is also the pad token
// would never be scored.
TEST(ScoreHead, DropsAPadTokenThatEndsResponses) {
  ModelConfig config = load_model_config(tiny_model_dir("qwen2")).value();
  EXPECT_TRUE(with_score_head(config).pad_id.has_value());
  config.pad_id = config.eos_ids[0];
  EXPECT_FALSE(with_score_head(config).pad_id.has_value());
}

TEST(ScoreHead, IsAskedForByName) {
  const ModelConfig text = load_model_config(tiny_model_dir("qwen3")).value();
  EXPECT_TRUE(require_head(text, Head::kLanguage, "m").ok());
  EXPECT_EQ(require_head(text, Head::kScore, "m").message(),
            "m: the model (Qwen3ForCausalLM) gives text, not a score; name a reward model, as "
            "gradus reward-model writes it");
  EXPECT_EQ(require_head(with_score_head(text), Head::kLanguage, "m").message(),
            "m: the model (Qwen3ForSequenceClassification) gives a score, not text; name a causal "
            "language model, or ask it with gradus score");
}

// Target i of a response stands on the row of the token before it; 0 on the prompt's last.
TEST(ScoredTarget, IsBehindTheLastTokenThatIsNoPadding) {
  EXPECT_EQ(scored_target(std::vector<int32_t>{5, 6, 2}, std::nullopt), 3);
  EXPECT_EQ(scored_target(std::vector<int32_t>{5, 6, 2}, 0), 3);
  EXPECT_EQ(scored_target(std::vector<int32_t>{5, 6, 2}, 2), 2);
  EXPECT_EQ(scored_target(std::vector<int32_t>{2, 6, 2, 2}, 2), 2);
  EXPECT_EQ(scored_target(std::vector<int32_t>{2, 2}, 2), 0);
}

}  // namespace
}  // namespace gradus::model
