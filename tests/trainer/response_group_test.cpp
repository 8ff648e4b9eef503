// SPDX-License-Identifier: Apache-2.0
#include "trainer/response_group.h"

#include <gtest/gtest.h>

#include <cmath>

namespace gradus::trainer {
namespace {

// A response to prompt `prompt_id` of `num_tokens` tokens with log-probs -1, -2, ...
records::RolloutRecord response(uint64_t prompt_id, int32_t sample, int num_tokens, double reward) {
  records::RolloutRecord record;
  record.trajectory.id = {prompt_id, sample};
  record.trajectory.token_ids = {7, 8};
  record.trajectory.prompt_length = 2;
  record.trajectory.finish_reason = data::FinishReason::kStop;
  for (int t = 0; t < num_tokens; ++t) {
    data::append_token(record.trajectory, 10 + t, static_cast<float>(-1 - t), 0.0f);
  }
  record.reward = reward;
  record.parts = {{.name = "exact", .raw = reward, .weight = 1, .weighted = reward}};
  return record;
}

ResponseGroup two_responses() {
  ResponseGroup group;
  group.records = {response(5, 0, 2, 1.0), response(5, 1, 3, 0.0)};
  return group;
}

TEST(ResponseGroup, LeavesOutWhatHasNoScoreNoTokensOrIsCutOff) {
  AlgorithmConfig config;
  records::RolloutRecord record = response(1, 0, 2, 1.0);
  EXPECT_TRUE(takes_part(record, config));
  record.trajectory.finish_reason = data::FinishReason::kLength;
  EXPECT_TRUE(takes_part(record, config));
  config.mask_truncated = true;
  EXPECT_FALSE(takes_part(record, config));
  EXPECT_FALSE(takes_part(response(1, 0, 0, 1.0), config));
  EXPECT_FALSE(takes_part(response(1, 0, 2, std::nan("")), config));
}

TEST(ResponseGroup, IsCorrectByTheFirstPartThatApplies) {
  records::RolloutRecord record = response(1, 0, 1, 1.0);
  EXPECT_TRUE(is_correct(record));
  record.parts.insert(record.parts.begin(), {.name = "format", .raw = 0.5});
  EXPECT_FALSE(is_correct(record));
  record.parts[0].status = "not_applicable";
  EXPECT_TRUE(is_correct(record));
  record.parts[1].status = "timeout";
  EXPECT_FALSE(is_correct(record));
}

TEST(ResponseGroup, IsFlatWhenItsScoredRewardsAreEqual) {
  ResponseGroup group = two_responses();
  EXPECT_FALSE(is_flat(group));
  group.records[1].reward = 1.0;
  EXPECT_TRUE(is_flat(group));
  group.records[1].reward = std::nan("");
  EXPECT_FALSE(is_flat(group)) << "one response alone with a reward";
  group.records[0].reward = 0;
  EXPECT_TRUE(is_flat(group)) << "one response alone without";
}

TEST(ResponseGroup, ATruncatedResponseStaysInTheMeanAndLeavesTheMiniBatch) {
  AlgorithmConfig config = preset("dr_grpo");
  config.mask_truncated = true;
  const Algorithm algorithm = make_algorithm(config, 16).value();
  ResponseGroup groups[] = {two_responses()};
  groups[0].records[1].trajectory.finish_reason = data::FinishReason::kLength;
  set_advantages(algorithm, {}, groups);
  EXPECT_EQ(groups[0].records[0].advantage, 0.5);
  EXPECT_TRUE(std::isnan(groups[0].records[1].advantage));
  const MiniBatch batch = mini_batch_of(groups, algorithm.config, 3);
  EXPECT_EQ(batch.sequence_begin, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(batch.advantages, (std::vector<double>{0.5, 0.5}));
  EXPECT_EQ(batch.old_logprobs, (std::vector<double>{-1, -2}));
  EXPECT_EQ(pack_of(groups[0], algorithm.config).responses,
            (std::vector<std::vector<int32_t>>{{10, 11}}));
}

TEST(ResponseGroup, OldLogprobsOfAnotherVersionStandBesideTheRecordedOnes) {
  const Algorithm algorithm = make_algorithm(preset("grpo"), 16).value();
  ResponseGroup groups[] = {two_responses()};
  groups[0].old_logprobs = {{-0.5f, -1.5f}, {-0.25f, -0.25f, -0.25f}};
  set_advantages(algorithm, {}, groups);
  const MiniBatch batch = mini_batch_of(groups, algorithm.config, 3);
  EXPECT_EQ(batch.old_logprobs, (std::vector<double>{-0.5, -1.5, -0.25, -0.25, -0.25}));
  EXPECT_EQ(batch.behavior_logprobs, (std::vector<double>{-1, -2, -1, -2, -3}));
}

TEST(ResponseGroup, AdvantagesByTokenAreKeptAndTheirMeanIsRecorded) {
  // Penalty 0.5 at each token: returns 1 - 0.5, 1 - 1 at the last and the first of two tokens.
  AlgorithmConfig config = preset("reinforce_pp");
  config.scaling = Scaling::kNone;
  const Algorithm algorithm = make_algorithm(config, 16).value();
  ResponseGroup groups[] = {two_responses()};
  groups[0].penalties = {{0.5, 0.5}, {0.5, 0.5, 0.5}};
  set_advantages(algorithm, {}, groups);
  EXPECT_EQ(groups[0].advantages[0], (std::vector<double>{0, 0.5}));
  EXPECT_EQ(groups[0].advantages[1], (std::vector<double>{-1.5, -1, -0.5}));
  EXPECT_EQ(groups[0].records[1].advantage, -1.0);
}

TEST(ResponseGroup, ACriticsValuesBecomeReturns) {
  AlgorithmConfig config = preset("ppo");
  config.scaling = Scaling::kNone;
  const Algorithm algorithm = make_algorithm(config, 16).value();
  ResponseGroup groups[] = {two_responses()};
  groups[0].values = {{0.25, 0.75}, {0, 0, 0}};
  set_advantages(algorithm, {}, groups);
  // With gamma = lambda = 1 a return is the reward that follows.
  EXPECT_EQ(groups[0].returns[0], (std::vector<double>{1, 1}));
  EXPECT_EQ(groups[0].advantages[0], (std::vector<double>{0.75, 0.25}));
}

TEST(ResponseGroup, GdpoTakesTheOverlongPenaltyAsAPartOfItsOwn) {
  AlgorithmConfig config = preset("grpo");
  config.advantage = "gdpo";
  config.scaling = Scaling::kNone;
  config.std_epsilon = 0;
  const Algorithm algorithm = make_algorithm(config, 16).value();
  ResponseGroup groups[] = {two_responses()};
  TrainerConfig trainer;
  trainer.overlong_buffer_tokens = 4;
  trainer.overlong_penalty = 2;
  // The right one is too long: its part says +1/sqrt(2), its length twice -1/sqrt(2).
  groups[0].records[0].reward -= 0.5;
  set_advantages(algorithm, trainer, groups);
  EXPECT_NEAR(groups[0].records[0].advantage, -1 / std::sqrt(2.0), 1e-12);
  EXPECT_NEAR(groups[0].records[1].advantage, 1 / std::sqrt(2.0), 1e-12);
}

}  // namespace
}  // namespace gradus::trainer
