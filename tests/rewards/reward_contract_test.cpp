// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

#include "common/strings.h"
#include "rewards/reward.h"
#include "tests/support/tiny_reward_model.h"

// What every registered reward owes, tested the moment it is registered.
namespace gradus::rewards {
namespace {

RewardRegistry builtin_registry() {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  return registry;
}

// The options that a reward cannot do without.
RewardOptions needed_options(const std::string& name) {
  if (name == "format") return {{"pattern", "(a|b)*.*[0-9]+"}};
  if (name == "plugin") return {{"path", GRADUS_VOWELS_PLUGIN}};
  if (name == "process") {
    return {{"command", "python3 examples/reward_process_python/contains.py"}};
  }
  if (name == "length") return {{"max", "100"}, {"unit", "characters"}};
  if (name == "judge") {  // nobody is there
    return {{"endpoint", "http://127.0.0.1:9/v1"},
            {"model", "m"},
            {"criterion", "c"},
            {"retries", "0"}};
  }
  if (name == "reward_model") return {{"path", testing::tiny_reward_model()}};
  return {};
}

class RewardContract : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto created = builtin_registry().create(GetParam(), needed_options(GetParam()));
    ASSERT_TRUE(created.ok()) << created.status().message();
    reward_ = std::move(*created);
    const Status loaded = reward_->load();
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    prompt_.answer = GetParam() == "countdown" ? R"({"target": 6, "numbers": [2, 3]})"
                     : GetParam() == "code"    ? R"([{"stdout": "6"}])"
                                               : "6";
  }

  std::vector<RewardPart> score(const std::vector<std::string>& responses) {
    std::vector<data::Trajectory> trajectories(responses.size());
    for (size_t i = 0; i < responses.size(); ++i) trajectories[i].text = responses[i];
    const Group group{&prompt_, trajectories};
    return reward_->score_batch(std::span(&group, 1));
  }

  std::unique_ptr<Reward> reward_;
  data::Prompt prompt_;
};

const std::vector<std::string> kResponses = {
    "",
    "6",
    "Answer: 6",
    "Answer: 2*3",
    "Answer:",
    "<answer>",
    "Answer: 2*3\nAnswer: 3*2 = 6.",
    std::string("\0\xff\xfe\xc3", 4),
    "Answer: \xe2\x88\x92",
    "\xe2\x88\x92"
    "6",
    "Answer: 1e999999999999999999999999",
    "-",
    "1/0",
    "Answer: 1/0",
    "Answer: ((((((",
};

TEST_P(RewardContract, GivesOnePartPerTrajectoryWithinItsBounds) {
  const auto parts = score(kResponses);
  ASSERT_EQ(parts.size(), kResponses.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].status != RewardStatus::kOk) continue;
    EXPECT_TRUE(std::isfinite(parts[i].score)) << kResponses[i];
    EXPECT_GE(parts[i].score, reward_->lower_bound()) << kResponses[i];
    EXPECT_LE(parts[i].score, reward_->upper_bound()) << kResponses[i];
  }
}

TEST_P(RewardContract, IsDeterministicIfItSaysSo) {
  if (!reward_->is_deterministic()) return;
  const auto first = score(kResponses), second = score(kResponses);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].score, second[i].score);
    EXPECT_EQ(first[i].status, second[i].status);
    EXPECT_EQ(first[i].detail, second[i].detail);
    EXPECT_EQ(first[i].answer, second[i].answer);
  }
}

TEST_P(RewardContract, JudgesEachResponseAloneWhateverStandsBesideIt) {
  if (reward_->compares_siblings()) return;
  const auto together = score(kResponses);
  for (size_t i = 0; i < kResponses.size(); ++i) {
    const auto alone = score({kResponses[i]});
    EXPECT_EQ(alone[0].score, together[i].score) << kResponses[i];
  }
}

TEST_P(RewardContract, ScoresNoGroupsAsNoParts) { EXPECT_TRUE(reward_->score_batch({}).empty()); }

TEST_P(RewardContract, StandsResponsesOfMegabytes) {
  constexpr size_t kBytes = 2 << 20;
  const auto repeated = [&](std::string_view unit) {
    std::string text;
    text.reserve(kBytes + unit.size());
    while (text.size() < kBytes) text += unit;
    return text;
  };
  for (const std::string_view unit :
       {"7", "1,", "1,234", "(", ")", "Answer: ", "Answer: 1\n", " ", "-1.5e3/7% ", "\xff",
        "e\xcc\x81", "<answer>", "Answer", "\n", "1+"}) {
    const auto start = std::chrono::steady_clock::now();
    const auto parts = score({repeated(unit), "Answer: " + repeated(unit)});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    ASSERT_EQ(parts.size(), 2u);
    // Two texts of 2 MB take about 0.02 s; quadratic time would take an hour.
    EXPECT_LT(seconds.count(), 20) << "unit '" << unit << "'";
  }
}

TEST_P(RewardContract, RefusesUnknownOptionsByName) {
  RewardOptions options = needed_options(GetParam());
  options["no_such_option"] = "1";
  const auto created = builtin_registry().create(GetParam(), options);
  ASSERT_FALSE(created.ok());
  EXPECT_TRUE(created.status().message().starts_with("reward " + GetParam() +
                                                     ": unknown option 'no_such_option'; known: "))
      << created.status().message();
}

INSTANTIATE_TEST_SUITE_P(Builtin, RewardContract, ::testing::ValuesIn(builtin_registry().names()),
                         [](const auto& parameter) { return parameter.param; });

// A model whose score is 0.3 times the first component of the last hidden state.
class LearnedReward : public ::testing::Test {
 protected:
  void SetUp() override {
    reward_ = builtin_registry().create("reward_model", {{"path", path_}}).value();
    ASSERT_TRUE(reward_->load().ok());
    prompt_.text = "What is 2+2?";
  }
  data::Trajectory response(const std::string& text, data::FinishReason reason) const {
    data::Trajectory trajectory;
    trajectory.text = text;
    trajectory.finish_reason = reason;
    return trajectory;
  }
  std::vector<RewardPart> score(const std::vector<data::Trajectory>& trajectories) const {
    const Group group{&prompt_, trajectories};
    return reward_->score_batch({&group, 1});
  }
  const std::string path_ = testing::tiny_reward_model();
  std::unique_ptr<Reward> reward_;
  data::Prompt prompt_;
};

TEST_F(LearnedReward, IsTheScoreOfPromptResponseAndEndToken) {
  const auto transformer = model::Transformer::load(path_).value();
  const auto tokenizer = data::Tokenizer::load(path_).value();
  std::vector<int32_t> ids = tokenizer->encode(prompt_.text).value();
  const std::vector<int32_t> four = tokenizer->encode("4").value();
  ids.insert(ids.end(), four.begin(), four.end());
  model::SequenceScorer scorer(*transformer);
  const float cut_off = scorer.score({&ids, 1})[0];
  ids.push_back(transformer->config().eos_ids.at(0));
  const float ended = scorer.score({&ids, 1})[0];
  EXPECT_NE(cut_off, ended);
  const auto parts = score({response("4", data::FinishReason::kStop),
                            response("another", data::FinishReason::kStop),
                            response("4", data::FinishReason::kLength)});
  EXPECT_EQ(parts[0].score, ended);
  EXPECT_EQ(parts[2].score, cut_off);
  EXPECT_EQ(parts[0].status, RewardStatus::kOk);
  EXPECT_NE(parts[1].score, parts[0].score);
}

TEST_F(LearnedReward, IsHeldInItsBoundsAndSaysWhatItCannotJudge) {
  const double free = score({response("4", data::FinishReason::kStop)})[0].score;
  const std::string high = std::to_string(free - 1), low = std::to_string(free - 2);
  reward_ = builtin_registry()
                .create("reward_model", {{"path", path_}, {"low", low}, {"high", high}})
                .value();
  ASSERT_TRUE(reward_->load().ok());
  EXPECT_EQ(score({response("4", data::FinishReason::kStop)})[0].score, std::stod(high));
  std::string text;
  for (int i = 0; i < 600; ++i) text += "1 2 ";
  const RewardPart part = score({response(text, data::FinishReason::kStop)})[0];
  EXPECT_EQ(part.status, RewardStatus::kError);
  EXPECT_THAT(part.detail, ::testing::HasSubstr(" tokens, the model's context 512"));
  EXPECT_EQ(score({response(std::string(200000, 'a'), data::FinishReason::kStop)})[0].detail,
            "prompt and response have 200012 bytes, the model's context 512 tokens");
  EXPECT_GT(reward_->planned_bytes(), 100000);
}

TEST_F(LearnedReward, NamesABadOption) {
  const auto message = [](const RewardOptions& options) {
    return builtin_registry().create("reward_model", options).status().message();
  };
  EXPECT_EQ(message({}),
            "reward reward_model: path: is missing; expected the directory of a reward model, as "
            "gradus reward-model writes it");
  EXPECT_THAT(message({{"path", "nowhere"}}),
              ::testing::HasSubstr("reward reward_model: path: nowhere"));
  EXPECT_EQ(message({{"path", "tests/golden/tiny_models/qwen2"}}),
            "reward reward_model: path: tests/golden/tiny_models/qwen2: the model "
            "(Qwen2ForCausalLM) gives text, not a score; name a reward model, as gradus "
            "reward-model writes it");
  EXPECT_EQ(message({{"path", path_}, {"low", "3"}, {"high", "2"}}),
            "reward reward_model: low (3) must be below high (2)");
  EXPECT_EQ(message({{"path", path_}, {"high", "much"}}),
            "reward reward_model: high: is 'much'; expected a number in [-1000000, 1000000]");
}

TEST(RewardRegistry, AnswersUnknownNamesWithTheKnownOnes) {
  const auto created = builtin_registry().create("nummber", {});
  EXPECT_EQ(created.status().message(),
            "unknown reward 'nummber'; did you mean 'number'?; known: " +
                join(builtin_registry().names(), ", "));
}

}  // namespace
}  // namespace gradus::rewards
