// SPDX-License-Identifier: Apache-2.0
#include "rewards/score_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <random>

#include "common/check.h"

namespace gradus::rewards {
namespace {

// Share of the siblings that are not longer.
class RankReward : public Reward {
 public:
  bool compares_siblings() const override { return true; }
  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<RewardPart> parts;
    for (const Group& group : groups) {
      for (const data::Trajectory& one : group.trajectories) {
        const auto num_below =
            std::count_if(group.trajectories.begin(), group.trajectories.end(),
                          [&](const auto& other) { return other.text.size() <= one.text.size(); });
        parts.push_back(
            {static_cast<double>(num_below) / static_cast<double>(group.trajectories.size())});
      }
    }
    return parts;
  }
};

// Calls `judge(text)`.
class CalledReward : public Reward {
 public:
  std::function<RewardPart(const std::string&)> judge;
  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<RewardPart> parts;
    for (const Group& group : groups) {
      for (const data::Trajectory& one : group.trajectories) parts.push_back(judge(one.text));
    }
    return parts;
  }
};

struct Batch {
  std::vector<data::Prompt> prompts;
  std::vector<std::vector<data::Trajectory>> trajectories;
  std::vector<Group> groups;

  Batch(size_t num_groups, size_t group_size) : prompts(num_groups), trajectories(num_groups) {
    std::mt19937 random(7);
    for (size_t g = 0; g < num_groups; ++g) {
      prompts[g].prompt_id = g;
      prompts[g].answer = std::to_string(g % 5);
      prompts[g].task = "t";
      trajectories[g].resize(group_size);
      for (size_t i = 0; i < group_size; ++i) {
        trajectories[g][i].id = {g, static_cast<int32_t>(i)};
        trajectories[g][i].text =
            std::string(random() % 40, 'x') + " \\boxed{" + std::to_string(random() % 5) + "}";
      }
      groups.push_back({&prompts[g], trajectories[g]});
    }
  }
};

RewardSum sum_of(std::vector<WeightedReward> rewards) {
  auto sum = RewardSum::create(std::move(rewards), OnRewardError::kSkipSample);
  GRADUS_CHECK(sum.ok(), sum.status().message());
  return std::move(*sum);
}

RewardSum called_sum(std::function<RewardPart(const std::string&)> judge, int64_t retries = 0) {
  auto reward = std::make_unique<CalledReward>();
  reward->judge = std::move(judge);
  std::vector<WeightedReward> rewards;
  rewards.push_back({"called", std::move(reward), 1, {}, retries});
  return sum_of(std::move(rewards));
}

std::string text_of(const std::vector<data::RewardBreakdown>& breakdowns) {
  std::string text;
  for (const data::RewardBreakdown& one : breakdowns) {
    text += fmt::format("{}/{} {} {} {}", one.id.prompt_id, one.id.sample_index, one.total,
                        one.is_scored, one.reason);
    for (const data::WeightedPart& part : one.parts) {
      text += fmt::format(" {}={}{}{}", part.name, part.raw, part.detail, part.answer);
    }
    text += '\n';
  }
  return text;
}

// Work taken twice, lost, or put in another's place would show, and a race under TSan.
TEST(ScorePool, GivesWhatTheSumGivesInAnyOrderOnAnyNumberOfThreads) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  std::vector<WeightedReward> rewards;
  auto math = registry.create("math", {});
  rewards.push_back({"math", std::move(*math), 1, {}});
  rewards.push_back({"rank", std::make_unique<RankReward>(), 0.5, {}});
  const RewardSum sum = sum_of(std::move(rewards));
  const Batch batch(40, 6);
  const std::string expected = text_of(*sum.score(batch.groups));
  for (const int64_t num_threads : {0, 1, 3, 64}) {
    ScorePool pool(sum, num_threads);
    for (uint32_t seed = 1; seed <= 3; ++seed) {
      std::vector<std::pair<size_t, size_t>> order;
      for (size_t i = 0; i < 240; ++i) order.emplace_back(i / 6, i % 6);
      std::shuffle(order.begin(), order.end(), std::mt19937(seed));
      pool.begin(batch.groups);
      for (const auto& [group, sample] : order) pool.finished(group, sample);
      const auto scored = pool.finish();
      ASSERT_TRUE(scored.ok());
      EXPECT_EQ(text_of(*scored), expected) << num_threads << " threads, seed " << seed;
      EXPECT_GT(pool.seconds().busy, 0);
    }
  }
}

TEST(ScorePool, ScoresWhileOthersAreStillSampled) {
  std::promise<void> scored;
  const RewardSum sum = called_sum([&](const std::string&) {
    scored.set_value();
    return RewardPart{1};
  });
  const Batch batch(1, 1);
  ScorePool pool(sum, 1);
  pool.begin(batch.groups);
  pool.finished(0, 0);
  // Before finish(): a pool that waits for it would never get here.
  scored.get_future().wait();
  EXPECT_EQ(pool.finish()->at(0).total, 1);
}

TEST(ScorePool, LeavesGroupsThatAreNotWholeWithoutParts) {
  const RewardSum sum = called_sum([](const std::string&) { return RewardPart{1}; });
  const Batch batch(2, 2);
  ScorePool pool(sum, 2);
  pool.begin(batch.groups);
  pool.finished(0, 1);
  pool.finished(1, 0);
  pool.finished(1, 1);
  const auto scored = pool.finish();
  ASSERT_EQ(scored->size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ((*scored)[i].is_scored, i >= 2);
    EXPECT_EQ((*scored)[i].parts.size(), i >= 2 ? 1u : 0u);
  }
  EXPECT_EQ((*scored)[0].reason, "the group is not finished");
}

TEST(ScorePool, RethrowsWhatARewardThrowsAndGoesOnWithTheNextBatch) {
  bool throws = true;
  const RewardSum sum = called_sum([&](const std::string&) {
    if (throws) throw InternalError("boom");
    return RewardPart{1};
  });
  const Batch batch(3, 2);
  ScorePool pool(sum, 2);
  const auto score = [&] {
    pool.begin(batch.groups);
    for (size_t i = 0; i < 6; ++i) pool.finished(i / 2, i % 2);
    return pool.finish();
  };
  EXPECT_THROW((void)score(), InternalError);
  throws = false;
  EXPECT_EQ(score()->at(5).total, 1);
}

TEST(ScorePool, CancelReturnsWhenNoThreadLooksAtTheBatch) {
  const RewardSum sum = called_sum(
      [](const std::string& text) { return RewardPart{static_cast<double>(text.size())}; });
  ScorePool pool(sum, 4);
  for (int i = 0; i < 50; ++i) {
    const Batch batch(20, 4);  // gone at the end of the round; under ASan a late look would show
    pool.begin(batch.groups);
    for (size_t j = 0; j < 80; ++j) pool.finished(j / 4, j % 4);
    pool.cancel();
  }
}

TEST(ScorePool, CallsAgainForResponsesThatFailedAlone) {
  std::mutex mutex;
  std::map<std::string, int> calls;
  const RewardSum sum = called_sum(
      [&](const std::string& text) -> RewardPart {
        const std::lock_guard lock(mutex);
        const int call = ++calls[text];
        if (text == "flaky" && call < 3) return {0, RewardStatus::kTimeout, "slow", ""};
        if (text == "broken") return {0, RewardStatus::kError, "broke", ""};
        if (text == "undecided") return {0, RewardStatus::kUndecided, "", ""};
        return {1};
      },
      /*retries=*/3);
  data::Prompt prompt;
  std::vector<data::Trajectory> trajectories(4);
  const char* texts[] = {"good", "flaky", "broken", "undecided"};
  for (size_t i = 0; i < 4; ++i) trajectories[i].text = texts[i];
  const Group group{&prompt, trajectories};
  const auto scored = sum.score({&group, 1});
  ASSERT_TRUE(scored.ok());
  const int64_t retries[] = {0, 2, 3, 0};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ((*scored)[i].parts[0].num_retries, retries[i]) << texts[i];
    EXPECT_EQ(calls[texts[i]], retries[i] + 1) << texts[i];
    EXPECT_EQ((*scored)[i].is_scored, i < 2) << texts[i];
  }
  EXPECT_EQ((*scored)[2].reason, "reward 'called': error: broke");
}

TEST(ScorePool, CallsAgainForAWholeGroupIfItsResponsesAreCompared) {
  class Flaky : public RankReward {
   public:
    mutable int num_calls = 0;
    std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
      auto parts = RankReward::score_batch(groups);
      if (++num_calls == 1) parts.at(1).status = RewardStatus::kError;
      return parts;
    }
  };
  std::vector<WeightedReward> rewards;
  rewards.push_back({"rank", std::make_unique<Flaky>(), 1, {}, 1});
  const RewardSum sum = sum_of(std::move(rewards));
  data::Prompt prompt;
  std::vector<data::Trajectory> trajectories(2);
  trajectories[1].text = "longer";
  const Group group{&prompt, trajectories};
  const auto scored = sum.score({&group, 1});
  EXPECT_EQ((*scored)[0].total, 0.5) << "alone it would be the first of one";
  EXPECT_EQ((*scored)[1].total, 1);
}

}  // namespace
}  // namespace gradus::rewards
