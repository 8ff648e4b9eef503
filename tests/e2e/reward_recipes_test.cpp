// SPDX-License-Identifier: Apache-2.0
// The recipes of configs/ about rewards, trained for a few steps; rubrics on ranks and after a
// resume.
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
  train("train", "after", reward + "--set reward.threads=0");
  train("train", "beside", reward + "--set reward.threads=3");
  EXPECT_EQ(state("beside"), state("after"));
  EXPECT_EQ(metrics("beside"), metrics("after"));
}

class RubricRun : public test::TinyRun {
 protected:
  // Half of random responses have a capital letter; the gate opens at the second step and the ramp
  // ends at the fifth.
  void SetUp() override {
    TinyRun::SetUp();
    test::write_file(path("rubric.yaml"), R"(name: letters
window: 2
tau: 0.5
ramp_steps: 3
answer: {check: format, options: {pattern: '(?s).*[A-Z].*'}}
criteria:
  - {name: any, check: format, options: {pattern: '(?s).*[a-zA-Z0-9].*'}}
  - {name: digit, check: format, options: {pattern: '(?s).*[0-9].*'}, stratum: hard}
)");
  }
  std::string options(const std::string& more = "") const {
    return "--set reward.parts=[] --set reward.rubric=" + path("rubric.yaml") + " " + more;
  }
  std::vector<double> lambdas(const std::string& name) const {
    std::vector<double> all;
    for (const auto& row : metrics(name)) {
      if (row.contains("rubric/lambda")) all.push_back(row.at("rubric/lambda"));
    }
    return all;
  }
};

TEST_F(RubricRun, IsTheSameOnRanksAndAfterAResumeAtEveryStep) {
  const std::string every = "--set run.checkpoint_every=1 --set run.keep_checkpoints=9 ";
  train("train", "one", options(every));
  const std::vector<double> expected = lambdas("one");
  ASSERT_EQ(expected.size(), 6u);
  EXPECT_EQ(expected[1], 0);
  EXPECT_GT(expected[2], 0);
  EXPECT_EQ(expected[5], 1);
  train("train", "two", options(every), test::mpirun(2));
  EXPECT_EQ(state("two"), state("one"));
  EXPECT_EQ(lambdas("two"), expected);
  for (int step = 5; step >= 1; --step) {
    fs::remove_all(path("runs/one/checkpoints/step_" + std::to_string(step + 1)));
    const std::string name = "resumed_" + std::to_string(step);
    fs::copy(path("runs/one"), path("runs/" + name),
             fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    EXPECT_THAT(train("train", name, options(every + "--resume")),
                HasSubstr("after step " + std::to_string(step)));
    EXPECT_EQ(state(name), state("two")) << step;
    EXPECT_EQ(lambdas(name), expected) << step;
  }
}

TEST_F(RubricRun, NamesEveryProblemOfTheRubricByItsLine) {
  test::write_file(path("rubric.yaml"), R"(name: letters
answer: {check: maths}
criteria:
  - {name: a, check: tags, weight: 0.5}
  - {name: b, check: tags, weight: 0.4}
  - {name: c, check: tags, stratum: hard}
)");
  const auto outcome = call(arguments("train", "bad", options()));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("rubric.yaml:2:17: answer.check: unknown reward 'maths'; "
                                          "did you mean 'math'?"));
  EXPECT_THAT(outcome.messages,
              HasSubstr("rubric.yaml:5:36: criteria[1].weight: the weights of stratum easy sum to "
                        "0.9; expected 1"));
}

TEST_F(RubricRun, APluginThatDiesEndsTheRunBeforeItsFirstStep) {
  const auto outcome =
      call(arguments("train", "dead",
                     "--set 'reward.parts=[{name: process, options: {command: python3 "
                     "tests/rewards/faulty_process.py dies}}]'"));
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.messages, HasSubstr("the process ended with exit code 3"));
}

}  // namespace
}  // namespace gradus
