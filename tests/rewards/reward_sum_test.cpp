// SPDX-License-Identifier: Apache-2.0
#include "rewards/reward_sum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "common/check.h"
#include "common/strings.h"

namespace gradus::rewards {
namespace {

using data::RewardBreakdown;

// Gives every trajectory the part that stands for its text in `parts`.
class ScriptedReward : public Reward {
 public:
  std::map<std::string, RewardPart> parts;

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<RewardPart> result;
    for (const Group& group : groups) {
      for (const auto& trajectory : group.trajectories) result.push_back(parts.at(trajectory.text));
    }
    return result;
  }
};

// Two prompts of tasks "sum" and "sort" with responses "a", "b" each.
struct Scene {
  data::Prompt prompts[2];
  std::vector<data::Trajectory> trajectories[2];
  std::vector<Group> groups;

  Scene() {
    for (uint64_t i = 0; i < 2; ++i) {
      prompts[i].prompt_id = 10 + i;
      prompts[i].task = i == 0 ? "sum" : "sort";
      prompts[i].answer = "1";
      for (int32_t sample = 0; sample < 2; ++sample) {
        data::Trajectory& trajectory = trajectories[i].emplace_back();
        trajectory.id = {10 + i, sample};
        trajectory.text = sample == 0 ? "a" : "b";
      }
      groups.push_back({&prompts[i], trajectories[i]});
    }
  }
};

WeightedReward scripted(const std::string& name, double weight, RewardPart a, RewardPart b,
                        std::vector<std::string> tasks = {}) {
  auto reward = std::make_unique<ScriptedReward>();
  reward->parts = {{"a", a}, {"b", b}};
  return {name, std::move(reward), weight, std::move(tasks)};
}

RewardSum sum_of(std::vector<WeightedReward> rewards, OnRewardError on_error,
                 double error_score = 0) {
  auto sum = RewardSum::create(std::move(rewards), on_error, error_score);
  EXPECT_TRUE(sum.ok()) << sum.status().message();
  return std::move(*sum);
}

template <class... Rewards>
std::vector<WeightedReward> list_of(Rewards... rewards) {
  std::vector<WeightedReward> list;
  (list.push_back(std::move(rewards)), ...);
  return list;
}

const RewardPart kTimeout{0, RewardStatus::kTimeout, "5 s", ""};

TEST(RewardSum, AddsWeightedScoresOfThePartsThatApply) {
  const Scene scene;
  const RewardSum sum =
      sum_of(list_of(scripted("answer", 1, {1}, {0}), scripted("format", 0.25, {1}, {1}, {"sum"})),
             OnRewardError::kAbort);
  const auto result = sum.score(scene.groups);
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(result->size(), 4u);
  EXPECT_EQ((*result)[0].total, 1.25);  // task sum, response a: 1 + 0.25
  EXPECT_EQ((*result)[1].total, 0.25);
  EXPECT_EQ((*result)[2].total, 1);  // task sort: format says nothing
  EXPECT_EQ((*result)[3].total, 0);
  EXPECT_EQ((*result)[3].id, (data::RequestId{11, 1}));
  EXPECT_TRUE((*result)[3].is_scored);
  const auto& parts = (*result)[2].parts;
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].name, "answer");
  EXPECT_EQ(parts[0].weighted, 1);
  EXPECT_EQ(parts[1].status, RewardStatus::kNotApplicable);
  EXPECT_EQ(parts[1].weighted, 0);
}

TEST(RewardSum, NeverTurnsAFailedCheckIntoAZero) {
  const Scene scene;
  const auto rewards = [] {
    return list_of(scripted("answer", 2, {1}, kTimeout), scripted("format", 1, {1}, {1}));
  };
  const auto skip = sum_of(rewards(), OnRewardError::kSkipSample).score(scene.groups);
  ASSERT_TRUE(skip.ok());
  EXPECT_TRUE((*skip)[0].is_scored);
  EXPECT_FALSE((*skip)[1].is_scored);
  EXPECT_EQ((*skip)[1].reason, "reward 'answer': timeout: 5 s");

  const auto group = sum_of(rewards(), OnRewardError::kSkipGroup).score(scene.groups);
  ASSERT_TRUE(group.ok());
  EXPECT_FALSE((*group)[0].is_scored);
  EXPECT_EQ((*group)[0].reason,
            "group skipped for prompt 10, sample 1: reward 'answer': timeout: 5 s");
  EXPECT_EQ((*group)[1].reason, "reward 'answer': timeout: 5 s");

  const auto score = sum_of(rewards(), OnRewardError::kScore, -0.5).score(scene.groups);
  ASSERT_TRUE(score.ok());
  EXPECT_TRUE((*score)[1].is_scored);
  EXPECT_EQ((*score)[1].total, 2 * -0.5 + 1);
  EXPECT_EQ((*score)[1].parts[0].status, RewardStatus::kTimeout);

  const auto abort = sum_of(rewards(), OnRewardError::kAbort).score(scene.groups);
  EXPECT_EQ(
      abort.status().message(),
      "prompt 10, sample 1: reward 'answer': timeout: 5 s; mend the data or the verifier, or set "
      "reward.on_error to skip_sample, skip_group or score");
}

TEST(RewardSum, DoesNotSkipForARewardThatOnlyMeasures) {
  const Scene scene;
  const RewardSum sum =
      sum_of(list_of(scripted("answer", 1, {1}, {1}), scripted("measure", 0, kTimeout, kTimeout)),
             OnRewardError::kAbort);
  const auto result = sum.score(scene.groups);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ((*result)[0].total, 1);
  EXPECT_EQ(part_statistics(*result)[1].num_failed, 4);
}

TEST(RewardSum, CallsANonFiniteScoreAnError) {
  const Scene scene;
  const RewardSum sum = sum_of(
      list_of(scripted("answer", 1, {std::nan("")}, {std::numeric_limits<double>::infinity()})),
      OnRewardError::kSkipSample);
  const auto result = sum.score(scene.groups);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ((*result)[0].parts[0].status, RewardStatus::kError);
  EXPECT_EQ((*result)[1].reason, "reward 'answer': error: the score is inf");
}

TEST(RewardSum, DoesNotScoreWhatNoRewardAppliesTo) {
  const Scene scene;
  const RewardSum sum =
      sum_of(list_of(scripted("answer", 1, {1}, {1}, {"sum"})), OnRewardError::kSkipSample);
  const auto result = sum.score(scene.groups);
  ASSERT_TRUE(result.ok());
  EXPECT_TRUE((*result)[0].is_scored);
  EXPECT_FALSE((*result)[2].is_scored);
  EXPECT_EQ((*result)[2].reason, "no reward applies to task 'sort'");
}

TEST(RewardSum, MeetsBadDataBeforeTraining) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  RewardConfig config;
  config.parts.push_back({.name = "number", .label = "answer", .tasks = {"sum", "gcd"}});
  const auto sum = RewardSum::create(config, registry);
  ASSERT_TRUE(sum.ok()) << sum.status().message();
  EXPECT_EQ(sum->names(), std::vector<std::string>{"answer"});
  data::Prompt prompt;
  prompt.task = "sum";
  prompt.answer = "7";
  EXPECT_TRUE(sum->check_prompt(prompt).ok());
  prompt.answer = "seven";
  EXPECT_EQ(sum->check_prompt(prompt).message(),
            "reward 'answer': the ground truth is 'seven'; expected a number");
  prompt.task = "sums";
  EXPECT_EQ(
      sum->check_prompt(prompt).message(),
      "data_source: no reward applies to 'sums'; did you mean 'sum'?; rewards are for: gcd, sum");
}

TEST(RewardSum, RefusesBadLists) {
  const auto message = [](std::vector<WeightedReward> rewards) {
    return RewardSum::create(std::move(rewards), OnRewardError::kAbort).status().message();
  };
  EXPECT_EQ(message({}), "reward.parts: is empty; name at least one reward");
  EXPECT_EQ(message(list_of(scripted("x", 1, {1}, {1}), scripted("x", 1, {1}, {1}))),
            "reward.parts: two are called 'x'; give one of them another label");
  EXPECT_EQ(message(list_of(scripted("x", std::nan(""), {1}, {1}))),
            "reward.parts: 'x' has weight nan; expected a finite number");
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  RewardConfig config;
  config.parts.push_back({.name = "numbers"});
  EXPECT_EQ(RewardSum::create(config, registry).status().message(),
            "reward.parts: unknown reward 'numbers'; did you mean 'number'?; known: " +
                join(registry.names(), ", "));
}

TEST(RewardSum, HoldsRewardsToOnePartPerTrajectory) {
  class Forgetful : public Reward {
    std::vector<RewardPart> score_batch(std::span<const Group>) const override { return {{1}}; }
  };
  const Scene scene;
  std::vector<WeightedReward> rewards;
  rewards.push_back({"x", std::make_unique<Forgetful>(), 1, {}});
  const RewardSum sum = sum_of(std::move(rewards), OnRewardError::kAbort);
  EXPECT_THROW((void)sum.score(scene.groups), InternalError);
}

TEST(PartStatistics, AreTheHandComputedOnes) {
  const Scene scene;
  const RewardSum sum = sum_of(
      list_of(scripted("answer", 3, {1}, {0.5}), scripted("other", 1, {1}, kTimeout, {"sum"})),
      OnRewardError::kSkipSample);
  const auto result = sum.score(scene.groups);
  ASSERT_TRUE(result.ok());
  const auto statistics = part_statistics(*result);
  ASSERT_EQ(statistics.size(), 2u);
  EXPECT_EQ(statistics[0].name, "answer");
  EXPECT_EQ(statistics[0].num_scored, 4);
  EXPECT_DOUBLE_EQ(statistics[0].mean(), 0.75);
  EXPECT_DOUBLE_EQ(statistics[0].std_dev(), 0.25);
  EXPECT_EQ(statistics[0].failed_fraction(), 0);
  EXPECT_EQ(statistics[1].num_scored, 1);
  EXPECT_EQ(statistics[1].num_not_applicable, 2);
  EXPECT_DOUBLE_EQ(statistics[1].mean(), 1);
  EXPECT_DOUBLE_EQ(statistics[1].failed_fraction(), 0.5);
  EXPECT_EQ(part_statistics({}).size(), 0u);
}

// A part's own policy holds for it alone.
TEST(RewardSum, LetsAPartAnswerForItsOwnFailures) {
  const Scene scene;
  std::vector<WeightedReward> list =
      list_of(scripted("answer", 1, {1}, {1}), scripted("style", 0.5, kTimeout, {1}));
  list[1].on_error = OnRewardError::kScore;
  list[1].error_score = -2;
  const auto result = sum_of(std::move(list), OnRewardError::kAbort).score(scene.groups);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ((*result)[0].total, 1 + 0.5 * -2);
  EXPECT_EQ((*result)[1].total, 1 + 0.5);

  std::vector<WeightedReward> other =
      list_of(scripted("answer", 1, kTimeout, {1}), scripted("style", 0.5, {1}, {1}));
  other[0].on_error = OnRewardError::kSkipGroup;
  const auto skipped = sum_of(std::move(other), OnRewardError::kScore, 0.5).score(scene.groups);
  for (const RewardBreakdown& breakdown : *skipped) EXPECT_FALSE(breakdown.is_scored);
}

// A gate multiplies: without the form nothing is earned, and a gate that failed is no 0.
TEST(RewardSum, APartBehindAGateCountsOnlyWithItsFullMarks) {
  const Scene scene;
  const auto score = [&](RewardPart gate_a, RewardPart gate_b, double gate_weight) {
    std::vector<WeightedReward> list =
        list_of(scripted("answer", 1, {0.5}, {0.5}), scripted("form", gate_weight, gate_a, gate_b));
    list[0].gate = "form";
    return *sum_of(std::move(list), OnRewardError::kSkipSample).score(scene.groups);
  };
  const auto gated = score({1}, {0.9}, 0.25);
  EXPECT_EQ(gated[0].total, 0.5 + 0.25);
  EXPECT_EQ(gated[1].total, 0.25 * 0.9);
  EXPECT_EQ(gated[1].parts[0].raw, 0.5) << "measured all the same";
  const auto failed = score({1}, kTimeout, 0);
  EXPECT_EQ(failed[0].total, 0.5);
  EXPECT_FALSE(failed[1].is_scored);
  EXPECT_EQ(failed[1].reason, "reward 'answer': its gate 'form' failed: timeout");
  const auto absent = score({1}, {0, RewardStatus::kNotApplicable}, 0);
  EXPECT_EQ(absent[1].total, 0.5);
  std::vector<WeightedReward> list = list_of(scripted("answer", 1, {1}, {1}));
  list[0].gate = "answer";
  EXPECT_EQ(RewardSum::create(std::move(list), OnRewardError::kAbort).status().message(),
            "reward.parts: 'answer' has the gate 'answer'; expected another part");
}

}  // namespace
}  // namespace gradus::rewards
