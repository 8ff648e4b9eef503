// SPDX-License-Identifier: Apache-2.0
#include "cli/inspect_loss.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/files.h"
#include "tests/support/run_gradus.h"
#include "tests/support/tolerances.h"
#include "trainer/algorithm.h"

namespace gradus::cli {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

Result<std::string> inspect(const std::string& algorithm, const std::vector<std::string>& overrides,
                            const std::string& batch) {
  const Result<trainer::TrainerConfig> config = inspected_config(algorithm, overrides);
  if (!config.ok()) return config.status();
  return inspect_loss(*config, batch, "batch.json");
}

json answer(const std::string& algorithm, const std::vector<std::string>& overrides,
            const json& batch) {
  const Result<std::string> text = inspect(algorithm, overrides, batch.dump());
  return text.ok() ? json::parse(*text) : json(text.status().message());
}

// The largest difference of two equally shaped arrays, relative to the largest value.
double difference(const json& got, const json& want) {
  double largest = 0, scale = 1e-3;
  EXPECT_EQ(got.size(), want.size());
  for (size_t s = 0; s < want.size(); ++s) {
    EXPECT_EQ(got[s].size(), want[s].size());
    for (size_t t = 0; t < want[s].size(); ++t) {
      const double a = got[s][t], b = want[s][t];
      largest = std::max(largest, std::isfinite(a) ? std::fabs(a - b) : 1.0);
      scale = std::max(scale, std::fabs(b));
    }
  }
  return largest / scale;
}

TEST(InspectLoss, EqualsAnIndependentReferenceForEveryName) {
  const json golden = json::parse(test::read_file("tests/golden/algorithms.json"));
  std::set<std::string> presets, losses;
  for (const json& c : golden["cases"]) {
    const std::vector<std::string> overrides = c["set"].get<std::vector<std::string>>();
    const std::string name =
        c["algorithm"].get<std::string>() + " " + c["set"].dump() + ", batch " + c["batch"].dump();
    const json got = answer(c["algorithm"], overrides, golden["batches"][c["batch"].get<size_t>()]);
    ASSERT_TRUE(got.is_object()) << name << ": " << got;
    for (const char* key : {"advantages", "token_loss", "grad"}) {
      EXPECT_LT(difference(got[key], c[key]), testing::kAlgorithmReference) << name << ": " << key;
    }
    const double want = c["loss"];
    EXPECT_NEAR(got["loss"].get<double>(), want,
                testing::kAlgorithmReference * (1e-3 + std::fabs(want)))
        << name;
    presets.insert(c["algorithm"].get<std::string>());
    const Result<trainer::TrainerConfig> config = inspected_config(c["algorithm"], overrides);
    losses.insert(config->algorithm.loss + " " + config->algorithm.advantage);
  }
  EXPECT_EQ(presets.size(), trainer::preset_names().size()) << "every preset has cases";
  trainer::LossRegistry registry("loss");
  trainer::register_builtin_losses(registry);
  for (const std::string& loss : registry.names()) {
    EXPECT_TRUE(losses.contains(loss + " grpo")) << loss;
  }
}

TEST(InspectLoss, TheValueLossEqualsAnIndependentReference) {
  const json golden = json::parse(test::read_file("tests/golden/algorithms.json"));
  int count = 0, num_clipped = 0;
  for (const json& c : golden["cases"]) {
    if (!c.contains("value_loss")) continue;
    const std::string name = c["set"].dump();
    const json got = answer(c["algorithm"], c["set"].get<std::vector<std::string>>(),
                            golden["batches"][c["batch"].get<size_t>()]);
    ASSERT_TRUE(got.is_object()) << name << ": " << got;
    for (const char* key : {"returns", "value_grad"}) {
      EXPECT_LT(difference(got[key], c[key]), testing::kAlgorithmReference) << name << ": " << key;
    }
    const double want = c["value_loss"];
    EXPECT_NEAR(got["value_loss"].get<double>(), want, testing::kAlgorithmReference * want) << name;
    EXPECT_EQ(got["metrics"]["critic/vf_loss"], got["value_loss"]);
    num_clipped += got["metrics"]["critic/vf_clipfrac"] > 0.0 ? 1 : 0;
    ++count;
  }
  EXPECT_GE(count, 12);
  EXPECT_GE(num_clipped, 6);
}

// Two responses to a prompt of one loss token each, rewards 1 and 0.
json two_sequences() {
  const json sequence = {{"group", 3},
                         {"reward", 1.0},
                         {"logprobs", {-1.0, -2.0}},
                         {"mask", {1, 0}},
                         {"old_logprobs", {-1.0, -2.0}}};
  json other = sequence;
  other["reward"] = 0.0;
  return {{"sequences", {sequence, other}}};
}

TEST(InspectLoss, ACriticsValuesAreForAllSequencesOrNone) {
  json batch = two_sequences();
  for (json& sequence : batch["sequences"]) sequence["values"] = {0.5, 0.0};
  const json got = answer("ppo", {}, batch);
  EXPECT_EQ(got["returns"], json({{1.0, 0.0}, {0.0, 0.0}}));
  EXPECT_FALSE(got.contains("value_loss"));
  batch["sequences"][0]["new_values"] = {0.75, 0.0};
  EXPECT_EQ(answer("ppo", {}, batch),
            "batch.json: some sequences have 'new_values' and some have none; give them to all, or "
            "to none");
  // Halves of the squared errors 1/4 and 1/2 over two tokens; no clip acts.
  batch["sequences"][1]["new_values"] = {0.5, 0.0};
  const json both = answer("ppo", {}, batch);
  EXPECT_NEAR(both["value_loss"].get<double>(), (0.0625 + 0.25) / 4, 1e-15);
  EXPECT_EQ(both["value_grad"], json({{-0.125, 0.0}, {0.25, 0.0}}));
}

TEST(InspectLoss, AnswersBySequenceAndTokenWithZerosWhereMasked) {
  // Advantages +-0.5 / (sqrt(1/2) + 1e-6); N = 2.
  const json got = answer("grpo", {}, two_sequences());
  const double advantage = 0.5 / (std::sqrt(0.5) + 1e-6);
  EXPECT_EQ(got.size(), 5u);
  EXPECT_NEAR(got["advantages"][0][0].get<double>(), advantage, 1e-12);
  EXPECT_EQ(got["advantages"][0][1], 0.0);
  EXPECT_NEAR(got["token_loss"][1][0].get<double>(), advantage, 1e-12);
  EXPECT_NEAR(got["grad"][0][0].get<double>(), -advantage / 2, 1e-12);
  EXPECT_EQ(got["grad"][0][1], 0.0);
  EXPECT_NEAR(got["loss"].get<double>(), 0, 1e-12);
  EXPECT_EQ(got["metrics"]["actor/ppo_kl"], 0.0);
  EXPECT_NEAR(got["metrics"]["critic/advantages/max"].get<double>(), advantage, 1e-12);
}

TEST(InspectLoss, TakesShortAndFullKeysAndLaterPresets) {
  const std::string batch = two_sequences().dump();
  const std::string full = inspect("grpo", {"trainer.algorithm.loss=reinforce"}, batch).value();
  EXPECT_EQ(inspect("grpo", {"loss=reinforce"}, batch).value(), full);
  EXPECT_EQ(inspect("gspo", {"trainer.algorithm=reinforce"}, batch).value(),
            inspect("reinforce", {}, batch).value());
}

TEST(InspectLoss, MaskTruncatedTakesAResponseOutOfTheLossAndLeavesItInTheMean) {
  json batch = two_sequences();
  batch["sequences"][1]["truncated"] = true;
  const json got = answer("dr_grpo", {"mask_truncated=true", "aggregation=token_mean"}, batch);
  EXPECT_EQ(got["advantages"], json({{0.5, 0.0}, {0.0, 0.0}}));
  EXPECT_EQ(got["loss"], -0.5);
}

struct BadBatch {
  std::string name;
  std::vector<std::string> overrides;
  json patch;  // JSON pointers to values
  std::string message;
};
std::ostream& operator<<(std::ostream& out, const BadBatch& bad) { return out << bad.name; }
class InspectLossInput : public ::testing::TestWithParam<BadBatch> {};

TEST_P(InspectLossInput, IsRefusedWithOneClearMessage) {
  json batch = two_sequences();
  for (const auto& [pointer, value] : GetParam().patch.items()) {
    batch[json::json_pointer(pointer)] = value;
  }
  const Result<std::string> got = inspect("grpo", GetParam().overrides, batch.dump());
  ASSERT_FALSE(got.ok()) << *got;
  EXPECT_THAT(got.status().message(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, InspectLossInput,
    ::testing::Values(
        BadBatch{"UnknownKey",
                 {},
                 {{"/sequences/0/masks", 1}},
                 "batch.json: sequences[0]: unknown key 'masks'; did you mean 'mask'?"},
        BadBatch{"MissingKey",
                 {},
                 {{"/sequences/1/reward", nullptr}},
                 "batch.json: sequences[1]: missing 'reward'"},
        BadBatch{"Lengths",
                 {},
                 {{"/sequences/1/old_logprobs", {-1.0}}},
                 "batch.json: sequences[1].old_logprobs has 1 values, logprobs has 2; they must be "
                 "of equal length"},
        BadBatch{"NotANumber",
                 {},
                 {{"/sequences/0/logprobs/1", "x"}},
                 "batch.json: sequences[0].logprobs[1] is x; it must be a finite number"},
        BadBatch{"Mask",
                 {},
                 {{"/sequences/0/mask/0", 2}},
                 "batch.json: sequences[0].mask[0] is 2; it must be 0 or 1"},
        BadBatch{"AllMasked",
                 {},
                 {{"/sequences/0/mask", {0, 0}}, {"/sequences/1/mask", {0, 0}}},
                 "batch.json: every token of every sequence is masked, so there is no loss; set "
                 "mask to 1 at the tokens that the policy sampled"},
        BadBatch{"GroupOfOne",
                 {},
                 {{"/sequences/0/group", 1}},
                 "batch.json: group 1 has one sequence, but the advantage grpo compares the "
                 "responses of a group; give at least 2, or choose an advantage without groups"},
        BadBatch{"NoSequences",
                 {},
                 {{"/sequences", json::array()}},
                 "batch.json: must be an object with \"sequences\", a list of at least one"},
        BadBatch{"Reference",
                 {"kl.coef=0.1"},
                 json::object(),
                 "batch.json: sequences[0]: missing 'reference_logprobs', which "
                 "trainer.algorithm.kl.coef (0.1) needs; give them or set it to 0"},
        BadBatch{"Entropy",
                 {"top_entropy_quantile=0.5"},
                 json::object(),
                 "batch.json: sequences[0]: missing 'entropy', which "
                 "trainer.algorithm.top_entropy_quantile (0.5) needs; give it or set it to 1"},
        BadBatch{"Values",
                 {"advantage=gae"},
                 json::object(),
                 "batch.json: sequence 0: 0 values for 1 loss tokens; the advantage gae needs"},
        BadBatch{"Option",
                 {"clip_lowe=0.1"},
                 json::object(),
                 "--set trainer.algorithm.clip_lowe=0.1: unknown key 'clip_lowe' in "
                 "'trainer.algorithm'; did you mean 'clip_low'?"},
        BadBatch{"Contradiction",
                 {"advantage=dr_grpo", "scaling=group"},
                 json::object(),
                 "--set trainer.algorithm.scaling=group: trainer.algorithm.scaling is group but "
                 "trainer.algorithm.advantage is dr_grpo, which knows none; leave scaling out, or "
                 "choose another advantage"}),
    [](const auto& test_case) { return test_case.param.name; });

TEST(InspectLoss, NamesRewardsThatAreNotFinite) {
  // As Python writes them.
  std::string text = two_sequences().dump();
  const std::string reward = "\"reward\":1.0";
  for (const std::string word : {"NaN", "Infinity", "-Infinity", "1e999"}) {
    std::string broken = text;
    broken.replace(broken.find(reward), reward.size(), "\"reward\":" + word);
    EXPECT_THAT(inspect("grpo", {}, broken).status().message(),
                word == "1e999" ? HasSubstr("batch.json: not JSON: ")
                                : HasSubstr("batch.json: sequences[0].reward is " + word +
                                            "; it must be a finite number"))
        << word;
  }
  EXPECT_THAT(inspect("grpo", {}, "{").status().message(), HasSubstr("batch.json: not JSON: "));
}

TEST(InspectLoss, AnUnknownAlgorithmIsAnsweredWithTheNearest) {
  EXPECT_THAT(inspected_config("grop", {}).status().message(),
              HasSubstr("--algorithm grop: unknown algorithm; did you mean 'grpo'?; known: cispo, "
                        "dapo, dppo_tv, "));
}

TEST(InspectCommand, ReadsAFileOrStandardInput) {
  const std::string path = ::testing::TempDir() + "gradus_inspect.json";
  test::write_file(path, two_sequences().dump());
  const test::Outcome from_file =
      test::run_gradus("inspect loss --algorithm dr_grpo --set clip_low=0.1 --input " + path);
  EXPECT_EQ(from_file.exit_code, 0) << from_file.output;
  EXPECT_EQ(json::parse(from_file.output)["advantages"], json({{0.5, 0.0}, {-0.5, 0.0}}));
  const test::Outcome from_input =
      test::run_command("cat " + path + " | " + GRADUS_BINARY +
                        " inspect loss --algorithm dr_grpo --set clip_low=0.1");
  EXPECT_EQ(from_input.output, from_file.output);
  EXPECT_EQ(test::run_gradus("inspect loss --input nowhere.json 2>&1").exit_code, 2);
}

}  // namespace
}  // namespace gradus::cli
