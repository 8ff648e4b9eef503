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

// 8 prompts x 8 samples a step, of which sample 0 fails once and sample 1 for good.
TEST_F(RewardRecipes, AFailureIsWhatThePolicySays) {
  const auto outcome = [&](const std::string& policy) {
    return call("train configs/reward_math.yaml --set run.dir=" + path("runs") +
                " --set run.name=" + policy +
                " --set trainer.num_steps=2 --set run.checkpoint_every=0" +
                " --set reward.on_error=" + policy + " --set reward.error_score=-3" +
                " --set 'reward.parts=[{name: process, label: flaky, options: {command: python3 "
                "tests/rewards/flaky_reward.py, workers: \"1\"}}]'");
  };
  struct Case {
    const char* policy;
    double skipped;
    double mean;  // of the rewards that are left; none where all are skipped
  };
  for (const Case& one : {Case{"skip_sample", 0.125, 0.5}, Case{"skip_group", 1, 0},
                          Case{"score", 0, (56 * 0.5 + 8 * -3.0) / 64}}) {
    SCOPED_TRACE(one.policy);
    const auto run = outcome(one.policy);
    ASSERT_EQ(run.exit_code, 0) << run.messages;
    const auto steps = metrics(one.policy);
    ASSERT_EQ(steps.size(), 2u);
    for (const auto& step : steps) {
      EXPECT_EQ(step.at("reward/flaky/failed_fraction"), 0.125);
      EXPECT_EQ(step.at("reward/flaky/retries"), 16);  // one for each of both samples
      EXPECT_EQ(step.at("reward/flaky/mean"), 0.5);
      EXPECT_EQ(step.at("reward/skipped_fraction"), one.skipped);
      EXPECT_EQ(step.contains("critic/rewards/mean"), one.skipped < 1);
      if (one.skipped == 1) continue;
      EXPECT_EQ(step.at("critic/rewards/mean"), one.mean);
    }
  }
  const auto aborted = outcome("abort");
  EXPECT_EQ(aborted.exit_code, 2);
  EXPECT_THAT(aborted.messages,
              HasSubstr(", sample 1: reward 'flaky': error: always; mend the data or the verifier, "
                        "or set reward.on_error to skip_sample, skip_group or score"));
}

TEST_F(RewardRecipes, AllThatIsWrongWithRewardsIsSaidBeforeTheRun) {
  test::write_file(path("rubric.yaml"), R"(name: bad
alpha: 1.5
answer: {check: maths}
criteria:
  - {name: a, check: tags, stratum: easy, weight: 0.5}
  - {name: b, check: tags, options: {tag: x}, stratum: easy, weight: 0.6}
  - {name: c, check: tags, stratum: hard}
)");
  const auto rubric =
      call("train configs/reward_rubric.yaml --dry-run --set reward.rubric=" + path("rubric.yaml"));
  EXPECT_EQ(rubric.exit_code, 2);
  const std::string file = path("rubric.yaml");
  for (const std::string line :
       {":2:8: 'alpha' must be in [0, 1], got '1.5'",
        ":3:17: answer.check: unknown reward 'maths'; did you mean 'math'?",
        ":6:37: criteria[1].options: reward tags: unknown option 'tag'; did you mean 'tags'?",
        ":6:70: criteria[1].weight: the weights of stratum easy sum to 1.1; expected 1"}) {
    EXPECT_THAT(rubric.messages, HasSubstr(file + line));
  }
  const auto plugin = call(
      "train configs/reward_math.yaml --dry-run --set 'reward.parts=[{name: plugin, options: "
      "{path: "
      "build/libfuture_plugin.so}}, {name: maths}]'");
  EXPECT_EQ(plugin.exit_code, 2);
  EXPECT_THAT(plugin.messages,
              HasSubstr("is built for ABI 2 of reward plug-ins; this Gradus has 1"));
  EXPECT_THAT(plugin.messages, HasSubstr("unknown reward 'maths'; did you mean 'math'?"));
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
