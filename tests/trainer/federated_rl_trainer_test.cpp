// SPDX-License-Identifier: Apache-2.0
#include "trainer/federated_rl_trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

namespace gradus::trainer {
namespace {

using federated::FloodFlag;
using federated::FloodMode;
using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

federated::FloodTerms terms(FloodFlag flag, FloodMode mode, double weight, double quantile = 0.5) {
  federated::FloodTerms result;
  result.is_on = true;
  result.weight = weight;
  result.config.flag = flag;
  result.config.mode = mode;
  result.config.quantile = quantile;
  return result;
}

const std::vector<double> kScores = {-4, -1, -3, -2};
const std::vector<bool> kAllVary = {false, false, false, false};

// The window's lower-interpolated median is -3, so -4 alone is strictly below it.
TEST(GroupWeights, FlagsStrictlyBelowTheQuantileOfTheWindow) {
  const GroupWeights paper =
      group_weights(terms(FloodFlag::kLow, FloodMode::kPaper, 3), kScores, kAllVary, kScores, 0);
  EXPECT_THAT(paper.weights_G, ElementsAre(3, 1, 1, 1));
  EXPECT_EQ(paper.num_flagged, 1);
  // Of the window, not of the batch: all are below an earlier median of 0.
  const std::vector<double> window = {0, 0, 0, -4, -1, -3, -2};
  EXPECT_EQ(
      group_weights(terms(FloodFlag::kLow, FloodMode::kPaper, 3), kScores, kAllVary, window, 0)
          .num_flagged,
      3)
      << "sorted -4 -3 -2 -1 0 0 0: the median is -1";
  EXPECT_THAT(
      group_weights(terms(FloodFlag::kHigh, FloodMode::kPaper, 3), kScores, kAllVary, kScores, 0)
          .weights_G,
      ElementsAre(1, 3, 1, 1));
}

TEST(GroupWeights, HaveAMeanOfOneOverGroupsWithSignalInNormalizedMode) {
  const std::vector<bool> one_is_flat = {false, false, true, false};
  for (const FloodFlag flag : {FloodFlag::kLow, FloodFlag::kHigh, FloodFlag::kRandom}) {
    const GroupWeights result = group_weights(terms(flag, FloodMode::kNormalized, 3, 0.7), kScores,
                                              one_is_flat, kScores, 7);
    EXPECT_EQ(result.num_groups, 3);
    EXPECT_GT(result.num_flagged, 0);
    EXPECT_EQ(result.weights_G[2], 1) << "a group without signal is left alone";
    EXPECT_NEAR(result.weights_G[0] + result.weights_G[1] + result.weights_G[3], 3, 1e-12);
  }
}

// The control: gradients as large as FLood's, and nothing chosen.
TEST(GroupWeights, OfFlagEveryAreTheMeanOfThoseByScore) {
  const GroupWeights every =
      group_weights(terms(FloodFlag::kEvery, FloodMode::kPaper, 5), kScores, kAllVary, kScores, 0);
  EXPECT_THAT(every.weights_G, ElementsAre(2, 2, 2, 2));
  EXPECT_THAT(group_weights(terms(FloodFlag::kEvery, FloodMode::kNormalized, 5), kScores, kAllVary,
                            kScores, 0)
                  .weights_G,
              ElementsAre(1, 1, 1, 1));
  EXPECT_THAT(
      group_weights(terms(FloodFlag::kNone, FloodMode::kPaper, 5), kScores, kAllVary, kScores, 0)
          .weights_G,
      ElementsAre(1, 1, 1, 1));
}

TEST(GroupWeights, AreChosenAtRandomAsManyAsByScore) {
  std::vector<int> times(4, 0);
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const GroupWeights result = group_weights(terms(FloodFlag::kRandom, FloodMode::kPaper, 3),
                                              kScores, kAllVary, kScores, seed);
    EXPECT_DOUBLE_EQ(std::accumulate(result.weights_G.begin(), result.weights_G.end(), 0.0), 6);
    for (size_t g = 0; g < 4; ++g) times[g] += result.weights_G[g] == 3 ? 1 : 0;
  }
  for (const int count : times) EXPECT_NEAR(count, 50, 30);
}

// A group's advantages still add up to 0, and a weight on them is one on the clipped surrogate.
TEST(GroupWeights, ScaleAWholeGroup) {
  ResponseGroup group;
  group.records.resize(2);
  group.records[0].advantage = 1;
  group.records[1].advantage = -1;
  group.advantages = {{1, 1}, {-1}};
  scale_advantages(group, 2.5);
  EXPECT_THAT(group.advantages[0], ElementsAre(2.5, 2.5));
  EXPECT_THAT(group.advantages[1], ElementsAre(-2.5));
  EXPECT_EQ(group.records[0].advantage + group.records[1].advantage, 0);
}

TEST(GroupScore, IsTheMeanOverResponsesOfTheirMeanLogProb) {
  ResponseGroup group;
  group.records.resize(3);
  group.records[0].trajectory.behavior_logprobs = {-1, -3};
  group.records[1].trajectory.behavior_logprobs = {-5};
  EXPECT_THAT(group_score(group), DoubleEq(-3.5)) << "the third has no token";
}

std::vector<data::Prompt> prompts(size_t count) {
  std::vector<data::Prompt> result(count);
  for (size_t i = 0; i < count; ++i) {
    result[i].prompt_id = i;
    result[i].answer = i % 2 == 0 ? "even" : "odd";
    result[i].metadata["level"] = i % 4 == 0 ? "hard" : "easy";
  }
  return result;
}

TEST(PartitionPrompts, GivesEveryPromptToOneClient) {
  FederatedRlConfig config{.num_clients = 4, .by = "level"};
  config.partition.beta = 1;
  const auto parts = partition_prompts(config, 3, prompts(80), 1);
  ASSERT_TRUE(parts.ok()) << parts.status().message();
  std::vector<int> owners(80, 0);
  for (const std::vector<int32_t>& rows : *parts) {
    EXPECT_GE(rows.size(), 3u);
    for (const int32_t row : rows) ++owners[static_cast<size_t>(row)];
  }
  EXPECT_THAT(owners, ::testing::Each(1));
  EXPECT_EQ(*parts, *partition_prompts(config, 3, prompts(80), 1));
  EXPECT_NE(*parts, *partition_prompts(config, 3, prompts(80), 2));
}

TEST(PartitionPrompts, SaysWhatItLacks) {
  FederatedRlConfig config{.num_clients = 8};
  EXPECT_THAT(partition_prompts(config, 1, prompts(5), 0).status().message(),
              HasSubstr("trainer.federated.num_clients is 8, but data.train has 5 prompts; take "
                        "fewer clients or more rows"));
  EXPECT_THAT(partition_prompts(config, 4, prompts(20), 0).status().message(),
              HasSubstr("a client would get fewer than the 4 prompts of a step "
                        "(trainer.prompts_per_step) of the 20 of data.train"));
  config.by = "levle";
  EXPECT_THAT(partition_prompts(config, 1, prompts(80), 0).status().message(),
              HasSubstr("row 0 of data.train has no 'levle' in its extra_info; did you mean "
                        "'level'?"));
}

}  // namespace
}  // namespace gradus::trainer
