// SPDX-License-Identifier: Apache-2.0
#include "trainer/algorithm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/rng.h"
#include "tests/support/tolerances.h"
#include "trainer/learner.h"

namespace gradus::trainer {
namespace {

Algorithm make(const TrainerConfig& config) { return make_algorithm(config.algorithm).value(); }

// Token log-probs of one batch; views of it go into a LossBatch.
struct Tokens {
  std::vector<int64_t> begin;
  std::vector<double> advantages;
  std::vector<float> now, old, reference, entropies;

  LossBatch batch(double num_tokens) const {
    return {.sequence_begin = begin,
            .advantages = advantages,
            .logprobs = now,
            .old_logprobs = old,
            .reference_logprobs = reference,
            .entropies = entropies,
            .num_tokens = num_tokens,
            .num_sequences = static_cast<double>(advantages.size())};
  }
};

// One sequence per advantage with one token whose ratio to the old policy is given.
Tokens with_ratios(const std::vector<double>& advantages, const std::vector<double>& ratios) {
  Tokens tokens{.begin = {0}, .advantages = advantages};
  for (const double ratio : ratios) {
    tokens.old.push_back(-2.0f);
    tokens.now.push_back(static_cast<float>(-2.0 + std::log(ratio)));
    tokens.entropies.push_back(0.5f);
    tokens.begin.push_back(static_cast<int64_t>(tokens.now.size()));
  }
  return tokens;
}

// Three sequences of 4, 1 and 6 tokens with ratios from 0.3 to 3.
Tokens random_tokens(uint64_t seed) {
  RngSequence rng(seed, RngStream::kInit);
  Tokens tokens{.begin = {0, 4, 5, 11}, .advantages = {1.3, -0.7, 0.4}};
  for (int i = 0; i < 11; ++i) {
    tokens.old.push_back(static_cast<float>(-2.0 + rng.uniform()));
    tokens.now.push_back(tokens.old.back() + static_cast<float>(2.2 * (rng.uniform() - 0.5)));
    tokens.reference.push_back(tokens.old.back() + static_cast<float>(rng.uniform() - 0.5));
    tokens.entropies.push_back(static_cast<float>(rng.uniform()));
  }
  return tokens;
}

double whole_loss(const LossTerms& terms, const TrainerConfig& config) {
  return terms.policy_loss + config.algorithm.kl.coef * terms.kl_loss -
         config.entropy_coef * terms.entropy;
}

TEST(GrpoAlgorithm, DividesByTheUnbiasedDeviationOfTheGroup) {
  // Rewards 1 0 0 1: mean 0.5, deviation sqrt(4 * 0.25 / 3) = 0.577350; 0.5 / 0.577351 = 0.866024.
  const double rewards[] = {1, 0, 0, 1};
  const std::vector<double> advantages = make({}).advantage->advantages(rewards);
  const double expected[] = {0.866024, -0.866024, -0.866024, 0.866024};
  ASSERT_EQ(advantages.size(), 4u);
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(advantages[i], expected[i], 1e-6);
}

TEST(GrpoAlgorithm, EqualRewardsGiveExactZeros) {
  // The mean of three 0.1 is not 0.1 in binary; divided by 1e-6 the difference would show.
  const double rewards[] = {0.1, 0.1, 0.1};
  EXPECT_EQ(make({}).advantage->advantages(rewards), (std::vector<double>{0, 0, 0}));
}

TEST(GrpoAlgorithm, ClipsAsTheHandComputedCases) {
  // clip 0.2 / 0.28, dual clip 3; -A r and -A clip(r):
  //   A =  1, r = 1.5: -1.5, -1.28 -> -1.28, no slope
  //   A =  1, r = 0.5: -0.5, -0.8  -> -0.5, slope -0.5
  //   A = -1, r = 0.5:  0.5,  0.8  ->  0.8, no slope
  //   A = -1, r = 1.5:  1.5,  1.28 ->  1.5, slope 1.5
  //   A = -1, r = 4:    4 -> dual clip 3, no slope
  const Tokens tokens = with_ratios({1, 1, -1, -1, -1}, {1.5, 0.5, 0.5, 1.5, 4});
  const LossTerms terms = loss_terms(*make({}).loss, {}, tokens.batch(10));
  EXPECT_NEAR(terms.policy_loss, (-1.28 - 0.5 + 0.8 + 1.5 + 3) / 10, 1e-6);
  const double slopes[] = {0, -0.5, 0, 1.5, 0};
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(terms.dlogprobs[i], slopes[i] / 10, 1e-7) << i;
  EXPECT_EQ(terms.clipped_tokens, 2);
  EXPECT_EQ(terms.dual_clipped_tokens, 1);
}

TEST(ReinforceAlgorithm, WeighsLogprobsByTheRewardAboveTheMean) {
  TrainerConfig config;
  config.algorithm = preset("reinforce");
  const double rewards[] = {1, 0, 0.5};
  EXPECT_EQ(make(config).advantage->advantages(rewards), (std::vector<double>{0.5, -0.5, 0}));
  // -A lp / N = -(0.5)(-2) / 4 and -(-0.5)(-2) / 4; slopes -A / N.
  const Tokens tokens = with_ratios({0.5, -0.5}, {1, 1});
  const LossTerms terms = loss_terms(*make(config).loss, config, tokens.batch(4));
  EXPECT_NEAR(terms.policy_loss, 0.25 - 0.25, 1e-12);
  EXPECT_EQ(terms.dlogprobs, (std::vector<double>{-0.125, 0.125}));
}

struct Case {
  const char* algorithm;
  KlKind kl_kind;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.algorithm << " k" << 1 + static_cast<int>(c.kl_kind);
}
class EveryLoss : public ::testing::TestWithParam<Case> {
 protected:
  EveryLoss() {
    config_.algorithm = preset(GetParam().algorithm);
    config_.algorithm.kl.coef = 0.3;
    config_.algorithm.kl.kind = GetParam().kl_kind;
    config_.entropy_coef = 0.01;
    loss_ = std::move(make(config_).loss);
  }
  TrainerConfig config_;
  std::unique_ptr<PolicyLoss> loss_;
};

TEST_P(EveryLoss, GradientIsTheSlopeOfTheLoss) {
  const Tokens tokens = random_tokens(5);
  const LossTerms terms = loss_terms(*loss_, config_, tokens.batch(20));
  // A power of two far above the rounding of a float near 2; truncation is step^2 / 6 times the
  // third derivative, at most 3.
  const float step = 1.0f / 1024;
  for (size_t i = 0; i < tokens.now.size(); ++i) {
    Tokens above = tokens, below = tokens;
    above.now[i] += step;
    below.now[i] -= step;
    const double slope = (whole_loss(loss_terms(*loss_, config_, above.batch(20)), config_) -
                          whole_loss(loss_terms(*loss_, config_, below.batch(20)), config_)) /
                         (double{above.now[i]} - double{below.now[i]});
    EXPECT_NEAR(terms.dlogprobs[i], slope, testing::kLossDifference) << "token " << i;
    EXPECT_EQ(terms.dentropies[i], -0.01 / 20);
  }
}

TEST_P(EveryLoss, DoesNotDependOnHowTheBatchIsCut) {
  const Tokens tokens = random_tokens(6);
  const LossTerms whole = loss_terms(*loss_, config_, tokens.batch(11));
  const auto cut = [](const auto& values, int64_t begin, int64_t end) {
    return std::remove_cvref_t<decltype(values)>(values.begin() + begin, values.begin() + end);
  };
  double loss = 0;
  std::vector<double> dlogprobs;
  for (size_t s = 0; s < 3; ++s) {
    const int64_t begin = tokens.begin[s], end = tokens.begin[s + 1];
    const Tokens part{.begin = {0, end - begin},
                      .advantages = {tokens.advantages[s]},
                      .now = cut(tokens.now, begin, end),
                      .old = cut(tokens.old, begin, end),
                      .reference = cut(tokens.reference, begin, end),
                      .entropies = cut(tokens.entropies, begin, end)};
    const LossTerms terms = loss_terms(*loss_, config_, part.batch(11));
    loss += whole_loss(terms, config_);
    dlogprobs.insert(dlogprobs.end(), terms.dlogprobs.begin(), terms.dlogprobs.end());
  }
  EXPECT_NEAR(loss, whole_loss(whole, config_), 1e-12);
  EXPECT_EQ(dlogprobs, whole.dlogprobs);
}

TEST_P(EveryLoss, ZeroAdvantageGivesZeroGradient) {
  Tokens tokens = random_tokens(7);
  tokens.advantages = {0, 0, 0};
  TrainerConfig plain = config_;
  plain.algorithm.kl.coef = plain.entropy_coef = 0;
  const LossTerms terms = loss_terms(*loss_, plain, tokens.batch(11));
  EXPECT_EQ(terms.policy_loss, 0);
  for (const double slope : terms.dlogprobs) EXPECT_EQ(slope, 0);
}

INSTANTIATE_TEST_SUITE_P(Builtin, EveryLoss,
                         ::testing::Values(Case{"grpo", KlKind::kK1}, Case{"grpo", KlKind::kK2},
                                           Case{"grpo", KlKind::kK3},
                                           Case{"reinforce", KlKind::kK3}));

TEST(LearningRate, FollowsWarmUpAndSchedule) {
  OptimizerConfig config{.learning_rate = 1.0, .warmup_steps = 4, .min_lr_ratio = 0.1};
  // Warm-up: (step + 1) / 4. Then 8 steps down to a tenth.
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 0, 12), 0.25);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 3, 12), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 11, 12), 1.0);
  config.lr_schedule = LrSchedule::kLinear;
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 4, 12), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 8, 12), 0.1 + 0.9 * 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 12, 12), 0.1);
  config.lr_schedule = LrSchedule::kCosine;
  // Half way the cosine is 0, a quarter of the way sqrt(1/2).
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 8, 12), 0.1 + 0.9 * 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 6, 12), 0.1 + 0.9 * 0.5 * (1 + std::sqrt(0.5)));
}

TEST(ReductionBlocks, CoverEachGroupOnceAndGiveRanksWholeSubtrees) {
  for (const int64_t num_groups : {1, 7, 8, 9, 64}) {
    int64_t next = 0;
    for (const BlockRange& block : block_ranges(num_groups, 8)) {
      EXPECT_EQ(block.first_group, next) << num_groups;
      next = block.end_group;
    }
    EXPECT_EQ(next, num_groups);
  }
  for (const int num_ranks : {1, 2, 4, 8}) {
    int64_t next = 0;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const BlockRange blocks = blocks_of_rank(8, rank, num_ranks);
      EXPECT_EQ(blocks.first_group, next) << num_ranks;
      EXPECT_EQ(blocks.end_group - blocks.first_group, 8 / num_ranks);
      next = blocks.end_group;
    }
    EXPECT_EQ(next, 8);
  }
}

}  // namespace
}  // namespace gradus::trainer
