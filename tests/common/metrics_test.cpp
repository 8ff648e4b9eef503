// SPDX-License-Identifier: Apache-2.0
#include "common/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "common/check.h"

namespace gradus {
namespace {

using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const InternalError& error) {
    return error.what();
  }
  return "no error";
}

TEST(MetricTable, HasOneCompleteRowPerName) {
  std::set<std::string_view> names;
  for (const MetricInfo& metric : declared_metrics()) {
    EXPECT_TRUE(names.insert(metric.name).second) << metric.name << " is declared twice";
    EXPECT_FALSE(metric.unit.empty() || metric.meaning.empty()) << metric.name;
    EXPECT_THAT(metrics_markdown(),
                HasSubstr(std::string("| `") + std::string(metric.name) + "` |"));
  }
}

TEST(MetricTable, MatchesPatternsByTheLongestOne) {
  EXPECT_EQ(find_metric("reward/exact/failed_fraction")->name, "reward/<part>/failed_fraction");
  EXPECT_EQ(find_metric("val-core/openai/gsm8k/acc/maj@8")->name, "val-core/<source>/acc/maj@<n>");
  EXPECT_EQ(find_metric("val-core/chain/acc/mean@4/low")->name,
            "val-core/<source>/acc/mean@<n>/low");
  EXPECT_EQ(find_metric("reward//mean"), nullptr) << "a placeholder is at least one character";
  EXPECT_EQ(find_metric("reward/<part>/mean"), nullptr) << "a placeholder left in is a bug";
  EXPECT_EQ(find_metric("actor/ppo_k"), nullptr);
}

TEST(Metrics, RefusesAnUndeclaredName) {
  Metrics metrics;
  EXPECT_THAT(message_of([&] { metrics.set("actor/ppo_lk", 1); }),
              HasSubstr("metric 'actor/ppo_lk' is not declared in common/metrics.cpp; did you mean "
                        "'actor/ppo_kl'?"));
  EXPECT_THAT(message_of([&] { metrics.add("loss", 1); }),
              HasSubstr("metric 'loss' is not declared"));
  EXPECT_THAT(message_of([&] { metrics.value("actor/lr"); }),
              HasSubstr("metric 'actor/lr' has no value"));
}

TEST(Metrics, ReducesAsDeclared) {
  Metrics metrics;
  // mean (1 * 2 + 3 * 4) / 6, sum 1 + 3, max, min and last of 1 and 3.
  for (const double value : {1.0, 3.0}) {
    metrics.add("actor/entropy", value, value + 1);
    metrics.add("training/num_updates", value);
    metrics.add("critic/score/max", value);
    metrics.add("critic/score/min", value);
    metrics.add("actor/lr", value);
  }
  EXPECT_DOUBLE_EQ(metrics.value("actor/entropy"), 14.0 / 6.0);
  EXPECT_EQ(metrics.value("training/num_updates"), 4);
  EXPECT_EQ(metrics.value("critic/score/max"), 3);
  EXPECT_EQ(metrics.value("critic/score/min"), 1);
  EXPECT_EQ(metrics.value("actor/lr"), 3);
  metrics.set("actor/entropy", 0.5);
  EXPECT_EQ(metrics.value("actor/entropy"), 0.5);
}

TEST(Metrics, MergingPartsIsAddingAllTheirValues) {
  Metrics left, right, whole;
  left.add("actor/ppo_kl", 1.0, 10);
  right.add("actor/ppo_kl", 4.0, 30);
  right.add("critic/rewards/mean", 0.25);
  left.merge(right);
  whole.add("actor/ppo_kl", 1.0, 10);
  whole.add("actor/ppo_kl", 4.0, 30);
  whole.add("critic/rewards/mean", 0.25);
  EXPECT_EQ(left.values(), whole.values());
  EXPECT_THAT(left.values(),
              UnorderedElementsAre(Pair("actor/ppo_kl", 3.25), Pair("critic/rewards/mean", 0.25)));
}

TEST(Metrics, ANanIsNeverDropped) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const auto& values : {std::vector{nan, 1.0}, std::vector{1.0, nan}}) {
    Metrics metrics;
    for (const double value : values) {
      metrics.add("mismatch/max_abs_logprob", value);
      metrics.add("critic/score/min", value);
    }
    EXPECT_TRUE(std::isnan(metrics.value("mismatch/max_abs_logprob")));
    EXPECT_TRUE(std::isnan(metrics.value("critic/score/min")));
  }
}

TEST(Metrics, AMeanOfNothingIsAbsentRatherThanZero) {
  Metrics metrics;
  metrics.add("reward/exact/mean", std::numeric_limits<double>::quiet_NaN(), 0);
  EXPECT_FALSE(metrics.contains("reward/exact/mean"));
  metrics.add("reward/exact/mean", 1.0, 2);
  EXPECT_EQ(metrics.value("reward/exact/mean"), 1.0);
}

}  // namespace
}  // namespace gradus
