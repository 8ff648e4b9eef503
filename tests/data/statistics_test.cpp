// SPDX-License-Identifier: Apache-2.0
#include "data/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/check.h"
#include "common/rng.h"

namespace gradus::data {
namespace {

// maj@k by looking at every subset of k of n samples.
double majority_by_enumeration(const std::vector<AnswerVotes>& answers, int64_t num_abstaining,
                               int64_t k) {
  std::vector<int> sample;  // the answer of each, -1 for none
  for (size_t i = 0; i < answers.size(); ++i) {
    sample.insert(sample.end(), static_cast<size_t>(answers[i].num_votes), static_cast<int>(i));
  }
  sample.insert(sample.end(), static_cast<size_t>(num_abstaining), -1);
  double right = 0, all = 0;
  for (uint32_t subset = 0; subset < (1u << sample.size()); ++subset) {
    if (__builtin_popcount(subset) != k) continue;
    std::vector<int> votes(answers.size(), 0);
    for (size_t i = 0; i < sample.size(); ++i) {
      if ((subset >> i & 1) != 0 && sample[i] >= 0) ++votes[static_cast<size_t>(sample[i])];
    }
    int most = 1, num_winners = 0, num_right = 0;
    for (const int count : votes) most = std::max(most, count);
    for (size_t i = 0; i < votes.size(); ++i) {
      if (votes[i] != most) continue;
      ++num_winners;
      num_right += answers[i].is_correct ? 1 : 0;
    }
    all += 1;
    if (num_winners > 0) right += static_cast<double>(num_right) / num_winners;
  }
  return right / all;
}

TEST(PassAtK, IsTheHandComputedChance) {
  EXPECT_DOUBLE_EQ(pass_at_k(5, 2, 1), 0.4);
  EXPECT_DOUBLE_EQ(pass_at_k(5, 2, 2), 0.7);  // 1 - C(3,2)/C(5,2) = 1 - 3/10
  EXPECT_DOUBLE_EQ(pass_at_k(5, 2, 3), 0.9);  // 1 - 1/10
  EXPECT_DOUBLE_EQ(pass_at_k(5, 2, 4), 1);    // four of five hold a right one
  EXPECT_DOUBLE_EQ(pass_at_k(5, 0, 5), 0);
  EXPECT_DOUBLE_EQ(pass_at_k(5, 5, 1), 1);
  EXPECT_DOUBLE_EQ(pass_at_k(1, 1, 1), 1);
}

TEST(PassAtK, StaysFiniteForManySamples) {
  // 1 - C(9999, 5000) / C(10000, 5000) = 1 - 1/2.
  EXPECT_NEAR(pass_at_k(10000, 1, 5000), 0.5, 1e-9);
}

TEST(PassAtK, RefusesWhatIsNoChance) {
  EXPECT_THROW((void)pass_at_k(4, 5, 1), InternalError);
  EXPECT_THROW((void)pass_at_k(4, 1, 5), InternalError);
  EXPECT_THROW((void)pass_at_k(4, 1, 0), InternalError);
}

TEST(MajorityAtK, IsTheHandComputedChance) {
  // Answers: A A B, A right; k = 2: {A,A} right, two of three subsets {A,B} a tie: (1 + 2 * 1/2)
  // / 3.
  const std::vector<AnswerVotes> answers = {{2, true}, {1, false}};
  EXPECT_NEAR(majority_at_k(answers, 0, 1), 2.0 / 3, 1e-12);
  EXPECT_NEAR(majority_at_k(answers, 0, 2), 2.0 / 3, 1e-12);
  EXPECT_NEAR(majority_at_k(answers, 0, 3), 1, 1e-12);
  // A and one that says nothing: a draw of the silent one alone is wrong.
  const std::vector<AnswerVotes> lone = {{1, true}};
  EXPECT_NEAR(majority_at_k(lone, 1, 1), 0.5, 1e-12);
  EXPECT_NEAR(majority_at_k(lone, 1, 2), 1, 1e-12);
  EXPECT_NEAR(majority_at_k({}, 3, 2), 0, 1e-12);
}

TEST(MajorityAtK, EqualsTheCountOverAllSubsets) {
  RngSequence random(11, RngStream::kTask);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<AnswerVotes> answers;
    int64_t total = 0;
    const int64_t num_answers = random.between(1, 5);
    for (int64_t i = 0; i < num_answers; ++i) {
      answers.push_back({random.between(1, 3), random.below(3) == 0});
      total += answers.back().num_votes;
    }
    const int64_t num_abstaining = random.between(0, 14 - total > 3 ? 3 : 0);
    const int64_t k = random.between(1, std::min<int64_t>(total + num_abstaining, 14));
    if (total + num_abstaining > 16) continue;
    EXPECT_NEAR(majority_at_k(answers, num_abstaining, k),
                majority_by_enumeration(answers, num_abstaining, k), 1e-9)
        << "trial " << trial << ", k " << k;
  }
}

TEST(MajorityAtK, IsPassAtOneForOneSample) {
  const std::vector<AnswerVotes> answers = {{40, true}, {20, false}, {30, false}};
  EXPECT_NEAR(majority_at_k(answers, 10, 1), pass_at_k(100, 40, 1), 1e-9);
  EXPECT_GT(majority_at_k(answers, 10, 64), 0.9);
}

// Regression: beyond 1029 samples a binomial overflowed and the result was not a number.
TEST(MajorityAtK, IsFiniteUpToItsLimitAndRefusesMore) {
  const std::vector<AnswerVotes> answers = {{kMaxVotingSamples / 2 + 1, true},
                                            {kMaxVotingSamples / 2 - 1, false}};
  EXPECT_NEAR(majority_at_k(answers, 0, 1), 0.501, 1e-9);
  const double chance = majority_at_k(answers, 0, 20);
  EXPECT_GT(chance, 0.5);
  EXPECT_LT(chance, 0.52);
  EXPECT_THROW((void)majority_at_k(answers, 1, 20), InternalError);
}

TEST(WilsonInterval, EqualsTheFormulaByHand) {
  // 8 of 10, z = 1.959964: centre (0.8 + 0.19207) / 1.38415 = 0.71674,
  // half 1.959964 * sqrt(0.016 + 0.0096036) / 1.38415 = 0.22657.
  const Interval interval = wilson_interval(8, 10, 0.95);
  EXPECT_NEAR(interval.low, 0.49016, 1e-5);
  EXPECT_NEAR(interval.high, 0.94331, 1e-5);
}

TEST(WilsonInterval, StaysWithinZeroAndOne) {
  EXPECT_EQ(wilson_interval(0, 20, 0.95).low, 0);
  EXPECT_NEAR(wilson_interval(0, 20, 0.95).high, 0.16113, 1e-5);  // z^2 / (n + z^2)
  EXPECT_EQ(wilson_interval(20, 20, 0.95).high, 1);
  EXPECT_EQ(wilson_interval(0, 0, 0.95).low, 0);
  EXPECT_EQ(wilson_interval(0, 0, 0.95).high, 1);
}

TEST(ClusterBootstrap, IsAsWideAsTheStandardErrorSays) {
  // 400 problems, half at 0.25 and half at 0.75: the mean's standard error is 0.25 / 20 = 0.0125.
  std::vector<double> means;
  for (int i = 0; i < 400; ++i) means.push_back(i % 2 == 0 ? 0.25 : 0.75);
  const Interval interval = cluster_bootstrap_interval(means, 0.95, 4000, 1);
  EXPECT_NEAR(interval.low, 0.5 - 1.96 * 0.0125, 0.002);
  EXPECT_NEAR(interval.high, 0.5 + 1.96 * 0.0125, 0.002);
  const Interval again = cluster_bootstrap_interval(means, 0.95, 4000, 1);
  EXPECT_EQ(interval.low, again.low);
  EXPECT_EQ(interval.high, again.high);
  const Interval narrower = cluster_bootstrap_interval(means, 0.5, 4000, 1);
  EXPECT_LT(narrower.high - narrower.low, interval.high - interval.low);
}

TEST(ClusterBootstrap, DoesNotClaimCertaintyWhereAllProblemsAgree) {
  const std::vector<double> all_right(20, 1.0);
  const Interval interval = cluster_bootstrap_interval(all_right, 0.95, 100, 1);
  EXPECT_NEAR(interval.low, 1 - 0.16113, 1e-5);
  EXPECT_EQ(interval.high, 1);
  EXPECT_EQ(cluster_bootstrap_interval({}, 0.95, 100, 1).low, 0);
}

TEST(Summary, CountsTasksAndLeavesFailedSamplesOut) {
  const std::vector<ProblemOutcome> problems = {
      // 4 samples, one of them failed: 2 of 3 right.
      {"sum", 4, 2, 1, {{2, true}, {1, false}}},
      {"sum", 4, 0, 0, {{3, false}}},
      {"sort", 4, 4, 0, {{4, true}}},
      {"sort", 4, 0, 4, {}},  // the verifier never answered
  };
  const auto table = summarize(problems, {.ks = {1, 4}});
  ASSERT_EQ(table.size(), 3u);
  EXPECT_EQ(table[0].task, "sum");
  EXPECT_EQ(table[0].num_problems, 2);
  EXPECT_EQ(table[0].num_samples, 8);
  EXPECT_EQ(table[0].num_failed, 1);
  EXPECT_DOUBLE_EQ(table[0].accuracy, (2.0 / 3 + 0) / 2);
  EXPECT_DOUBLE_EQ(table[0].at[0].pass, table[0].accuracy);
  EXPECT_NEAR(table[0].at[0].majority, table[0].accuracy, 1e-12);
  EXPECT_EQ(table[0].at[1].num_problems, 1);  // only one has four judged samples
  EXPECT_DOUBLE_EQ(table[0].at[1].pass, 0);
  EXPECT_EQ(table[1].task, "sort");
  EXPECT_EQ(table[1].num_unjudged, 1);
  EXPECT_DOUBLE_EQ(table[1].accuracy, 1);
  EXPECT_LT(table[1].accuracy_interval.low, 0.5);  // one problem says little
  EXPECT_EQ(table[2].task, "all");
  EXPECT_DOUBLE_EQ(table[2].accuracy, (2.0 / 3 + 0 + 1) / 3);
}

TEST(Summary, UsesWilsonForOneSampleAProblem) {
  std::vector<ProblemOutcome> problems;
  for (int i = 0; i < 10; ++i) problems.push_back({"sum", 1, i < 8 ? 1 : 0, 0, {}});
  const auto table = summarize(problems, {});
  ASSERT_EQ(table.size(), 1u);  // one task needs no line for all
  EXPECT_NEAR(table[0].accuracy_interval.low, 0.49016, 1e-5);
  EXPECT_NEAR(table[0].accuracy_interval.high, 0.94331, 1e-5);
}

}  // namespace
}  // namespace gradus::data
