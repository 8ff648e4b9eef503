// SPDX-License-Identifier: Apache-2.0
// The recipes of configs/ about rewards, trained for a few steps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/tiny_run.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class RewardRecipes : public test::TinyRun {
 protected:
  std::vector<nlohmann::json> run(const std::string& name) {
    const auto outcome = call("train configs/" + name + ".yaml --set run.dir=" + path("runs") +
                              " --set trainer.num_steps=3 --set run.checkpoint_every=0");
    EXPECT_EQ(outcome.exit_code, 0) << outcome.messages;
    return metrics(name);
  }
};

TEST_F(RewardRecipes, MathTrains) {
  const auto steps = run("reward_math");
  ASSERT_EQ(steps.size(), 3u);
  for (const auto& step : steps) {
    EXPECT_EQ(step.at("reward/answer/failed_fraction"), 0);
    EXPECT_LE(step.at("reward/brief/mean"), 0);
    EXPECT_LE(step.at("reward/repetition/mean"), 0);
    EXPECT_EQ(step.at("reward/skipped_fraction"), 0);
  }
}

TEST_F(RewardRecipes, RubricTrains) {
  const auto steps = run("reward_rubric");
  ASSERT_EQ(steps.size(), 3u);
  for (const auto& step : steps) {
    EXPECT_EQ(step.at("rubric/lambda"), 0);
    EXPECT_EQ(step.at("rubric/fallback_groups"), 0);
    // Equal weights: the mean of the stratum is that of its criteria.
    EXPECT_NEAR(step.at("rubric/easy_mean").get<double>(),
                (step.at("reward/has_digit/mean").get<double>() +
                 step.at("reward/no_upper/mean").get<double>()) /
                    2,
                1e-9);
    const double expected = 0.7 * step.at("reward/answer/mean").get<double>() +
                            0.3 * step.at("rubric/easy_mean").get<double>();
    EXPECT_NEAR(step.at("critic/rewards/mean").get<double>(), expected, 1e-9);
    EXPECT_NEAR(step.at("critic/score/mean").get<double>(), expected, 1e-9);
  }
}

TEST_F(RewardRecipes, PluginsTrain) {
  const auto steps = run("reward_plugin");
  ASSERT_EQ(steps.size(), 3u);
  for (const auto& step : steps) {
    EXPECT_EQ(step.at("reward/contains/failed_fraction"), 0);
    EXPECT_EQ(step.at("reward/vowels/failed_fraction"), 0);
    EXPECT_GT(step.at("reward/vowels/mean"), 0);
  }
}

TEST_F(RewardRecipes, ScoringBesideSamplingChangesNeitherWeightsNorMetrics) {
  const std::string reward =
      "--set 'reward.parts=[{name: math}, {name: length, weight: 0.5, options: {shape: group}}]' ";
  const std::string more = "--set eval.num_samples=8 " + reward;
  train("train", "after", more + "--set reward.threads=0");
  train("train", "beside", more + "--set reward.threads=3");
  EXPECT_EQ(state("beside"), state("after"));
  EXPECT_EQ(metrics("beside"), metrics("after"));
  // Of steps and of evaluations, of which the one before training has a row of its own.
  const auto hidden = [&](const std::string& name, const std::string& metric) {
    double sum = 0;
    int64_t count = 0;
    for (const auto& row :
         test::json_rows(test::read_file(path("runs/" + name + "/metrics.jsonl")))) {
      if (!row.contains(metric + "busy_s")) continue;
      EXPECT_GT(row.at(metric + "busy_s"), 0);
      sum += row.at(metric + "hidden_fraction").get<double>();
      ++count;
    }
    EXPECT_EQ(count, metric == "perf/reward_" ? 6 : 3) << metric;
    return sum / static_cast<double>(count);
  };
  for (const char* metric : {"perf/reward_", "perf/eval_reward_"}) {
    EXPECT_LT(hidden("after", metric), 0.05) << metric;
    EXPECT_GT(hidden("beside", metric), 0.1) << metric;
  }
}

TEST_F(RewardRecipes, APluginThatDiesEndsTheRunBeforeItsFirstStep) {
  const auto outcome =
      call(arguments("train", "dead",
                     "--set 'reward.parts=[{name: process, options: {command: python3 "
                     "tests/rewards/faulty_process.py dies}}]'"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("the process ended with exit code 3"));
}

}  // namespace
}  // namespace gradus
