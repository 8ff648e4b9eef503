// SPDX-License-Identifier: Apache-2.0
#include "rewards/rubric_build.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "common/check.h"
#include "common/strings.h"
#include "tests/support/files.h"

namespace gradus::rewards {
namespace {

RubricConfig config_of(RubricSchedule schedule = RubricSchedule::kSigmoid, int64_t num_easy = 4,
                       int64_t num_hard = 2) {
  RubricConfig config;
  config.name = "test";
  config.schedule = schedule;
  for (int64_t i = 0; i < num_easy + num_hard; ++i) {
    RubricCriterion& one = config.criteria.emplace_back();
    one.name = fmt::format("c{}", i);
    one.stratum = i < num_easy ? Stratum::kEasy : Stratum::kHard;
  }
  return config;
}

std::vector<CriterionScore> scores_of(const std::vector<double>& values) {
  std::vector<CriterionScore> scores;
  for (const double value : values) {
    scores.push_back({std::isnan(value) ? std::nullopt : std::optional(value)});
  }
  return scores;
}

const double kNone = std::nan("");

TEST(Curriculum, FollowsTheHandComputedTrace) {
  // w = 3, tau = 0.9, linear over 4 steps: .91 .93 .95 is the first full window, at step 5; the
  // ramp is (t - 5) / 4.
  RubricConfig config = config_of(RubricSchedule::kLinear);
  config.window = 3;
  config.ramp_steps = 4;
  Curriculum curriculum(config, 100);
  const double means[] = {.92, .88, .91, .93, .95, .2, .95, .95, .95, .95};
  const double lambdas[] = {0, 0, 0, 0, 0, .25, .5, .75, 1, 1};
  for (size_t t = 1; t <= 10; ++t) {
    EXPECT_EQ(curriculum.lambda(), lambdas[t - 1]) << "step " << t;
    curriculum.finish_step(means[t - 1]);
    EXPECT_EQ(curriculum.start_step(), t < 5 ? -1 : 5) << "step " << t;
  }
}

TEST(Curriculum, NeedsAFullWindowAndTakesTauItselfForMet) {
  RubricConfig config = config_of();
  config.window = 2;
  config.ramp_steps = 1;
  Curriculum curriculum(config, 100);
  curriculum.finish_step(0.9);
  EXPECT_EQ(curriculum.start_step(), -1) << "a window of one";
  curriculum.finish_step(std::nullopt);
  EXPECT_EQ(curriculum.start_step(), -1) << "a step without a mean leaves the window as it is";
  curriculum.finish_step(0.9);
  EXPECT_EQ(curriculum.start_step(), 3);
  EXPECT_EQ(curriculum.lambda(), 1);
}

TEST(Curriculum, HasTheSigmoidOfThePaper) {
  EXPECT_NEAR(ramp_shape(RubricSchedule::kSigmoid, 10, 0.25), 0.0701, 5e-5);
  EXPECT_NEAR(ramp_shape(RubricSchedule::kSigmoid, 10, 0.5), 0.5, 1e-12);
  EXPECT_NEAR(ramp_shape(RubricSchedule::kSigmoid, 10, 0.75), 0.9299, 5e-5);
  EXPECT_EQ(ramp_shape(RubricSchedule::kSigmoid, 10, 1.5), 1);
  EXPECT_EQ(ramp_shape(RubricSchedule::kLinear, 10, 0.25), 0.25);
}

// lambda written out as the definition has it, from the whole history.
double lambda_at(const RubricConfig& config, const std::vector<double>& means, int64_t t,
                 int64_t ramp_steps) {
  std::vector<double> known;
  for (int64_t s = 1; s < t; ++s) {
    if (std::isnan(means[static_cast<size_t>(s - 1)])) continue;
    known.push_back(means[static_cast<size_t>(s - 1)]);
    const size_t size = known.size(), w = static_cast<size_t>(config.window);
    bool is_met = size >= w;
    for (size_t i = size - std::min(w, size); i < size; ++i) is_met &= known[i] >= config.tau;
    if (!is_met) continue;
    const double u = static_cast<double>(t - s) / static_cast<double>(ramp_steps);
    return config.lambda_base + (config.lambda_max - config.lambda_base) *
                                    ramp_shape(config.schedule, config.steepness, u);
  }
  return 0;
}

// A trigger that fires twice, a window off by one, a state that forgets something: each shows
// within a few of the sequences.
TEST(Curriculum, IsBitEqualToTheDefinitionAlsoAcrossARestartAtEveryStep) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int sequence = 0; sequence < 400; ++sequence) {
    RubricConfig config =
        config_of(sequence % 2 == 0 ? RubricSchedule::kSigmoid : RubricSchedule::kLinear);
    config.window = 1 + static_cast<int64_t>(random() % 5);
    config.ramp_steps = 1 + static_cast<int64_t>(random() % 9);
    config.lambda_base = uniform(random) * 0.3;
    config.tau = 0.5;
    std::vector<double> means;
    for (int i = 0; i < 24; ++i) means.push_back(random() % 8 == 0 ? kNone : 0.3 + uniform(random));
    Curriculum curriculum(config, 24);
    for (int64_t t = 1; t <= 24; ++t) {
      ASSERT_EQ(curriculum.lambda(), lambda_at(config, means, t, config.ramp_steps))
          << "sequence " << sequence << ", step " << t;
      Curriculum resumed(config, 24);
      ASSERT_TRUE(resumed.restore(curriculum.state()).ok());
      ASSERT_EQ(resumed.state(), curriculum.state());
      ASSERT_EQ(resumed.lambda(), curriculum.lambda());
      curriculum = resumed;
      const double mean = means[static_cast<size_t>(t - 1)];
      curriculum.finish_step(std::isnan(mean) ? std::nullopt : std::optional(mean));
    }
  }
}

TEST(Curriculum, RefusesTheStateOfAnotherRubric) {
  const std::string state = Curriculum(config_of(), 10).state();
  RubricConfig other = config_of();
  other.criteria[0].stratum = Stratum::kHard;
  Curriculum curriculum(other, 10);
  const Status status = curriculum.restore(state);
  EXPECT_TRUE(status.message().starts_with(
      "reward.rubric: the checkpoint was made with another rubric or another ramp ("))
      << status.message();
  EXPECT_EQ(curriculum.restore("x").message(),
            "the checkpoint's state of the rubric cannot be read");
  Curriculum longer(config_of(), 1000);
  EXPECT_TRUE(longer.restore(state).ok()) << "a run that goes on for longer keeps its ramp";
}

TEST(RubricScore, IsThatOfTheHandComputedCase) {
  // Easy 3/4, hard 1/2, lambda 1/2: rubric .625; 0.7 + 0.3 * .625 = .8875.
  const RubricScore score = rubric_score(config_of(), 0.5, 1, scores_of({1, 1, 1, 0, 1, 0}));
  EXPECT_NEAR(score.total, 0.8875, 1e-15);
  EXPECT_EQ(*score.easy, 0.75);
  EXPECT_EQ(*score.hard, 0.5);
  // The four schedules on the same scores.
  EXPECT_NEAR(
      rubric_score(config_of(RubricSchedule::kUniform), 0.5, 1, scores_of({1, 1, 1, 0, 1, 0}))
          .total,
      0.7 + 0.3 * 4 / 6, 1e-15);
  EXPECT_EQ(
      rubric_score(config_of(RubricSchedule::kNone), 0.5, 1, scores_of({1, 1, 1, 0, 1, 0})).total,
      1);
}

TEST(RubricScore, LeavesOutWhatDoesNotApply) {
  RubricConfig config = config_of();
  // Easy: 1 of the 2 that apply; hard: none applies, so easy has all the weight.
  const auto scores = scores_of({1, 0, kNone, kNone, kNone, kNone});
  EXPECT_NEAR(rubric_score(config, 0.5, 0, scores).total, 0.3 * 0.5, 1e-15);
  EXPECT_FALSE(rubric_score(config, 0.5, 0, scores).hard);
  const auto nothing = scores_of(std::vector<double>(6, kNone));
  EXPECT_EQ(rubric_score(config, 0.5, 1, nothing).total, 1) << "the answer alone";
  config.not_applicable = NotApplicable::kPass;
  EXPECT_NEAR(rubric_score(config, 0.5, 0, scores).total, 0.3 * (0.5 * 0.75 + 0.5), 1e-15);
  config.not_applicable = NotApplicable::kFail;
  EXPECT_NEAR(rubric_score(config, 0.5, 0, scores).total, 0.3 * (0.5 * 0.25), 1e-15);
}

// What explain and the rollout dump show must add up to what is trained on.
TEST(RubricScore, IsTheSumOfItsWeightsTimesItsValues) {
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) {
    RubricConfig config = config_of(static_cast<RubricSchedule>(i % 4), 3, 2);
    config.not_applicable = static_cast<NotApplicable>(i % 3);
    if (i % 5 == 0) {
      const double weights[] = {.5, .25, .25, .6, .4};
      for (size_t j = 0; j < 5; ++j) config.criteria[j].weight = weights[j];
    }
    std::vector<double> values;
    for (int j = 0; j < 5; ++j) values.push_back(random() % 4 == 0 ? kNone : (random() % 2));
    const double answer = random() % 2;
    const RubricScore score = rubric_score(config, 0.3, answer, scores_of(values));
    double sum = score.answer_weight * answer;
    for (size_t j = 0; j < 5; ++j) sum += score.weights[j] * score.values[j];
    EXPECT_NEAR(sum, score.total, 1e-12) << i;
  }
}

TEST(Curriculum, FallsBackToTheAnswerForAWholeGroup) {
  Curriculum curriculum(config_of(), 10);
  std::vector<std::vector<CriterionScore>> criteria = {scores_of({1, 1, 1, 1, 1, 1}),
                                                       scores_of({0, 0, 0, 0, 0, 0})};
  criteria[1][2].has_failed = true;
  const std::vector<double> answers = {0, 1};
  const auto scores = curriculum.score(answers, criteria);
  EXPECT_EQ(scores[0].total, 0) << "the same scale for all of a group";
  EXPECT_EQ(scores[1].total, 1);
  EXPECT_EQ(curriculum.num_fallbacks(), 1);
  EXPECT_FALSE(curriculum.easy_mean());
}

// The 20 candidates of the paper: applicability and pass rate in percent; 20 is the answer.
TEST(RubricBuild, FindsTheStrataOfThePaper) {
  const double table[][2] = {{99.1, 98.3}, {99.4, 99.4}, {18.8, 98.1}, {78.1, 99.3}, {71.0, 96.7},
                             {22.9, 87.3}, {100, 86.1},  {93.2, 35.4}, {9.7, 90.7},  {83.9, 52.2},
                             {100, 69.4},  {78.4, 94.8}, {99.2, 68.6}, {34.0, 90.4}, {27.3, 98.2},
                             {33.5, 85.8}, {99.9, 91.7}, {97.5, 66.4}, {96.7, 27.7}};
  const RubricConfig candidates = config_of(RubricSchedule::kSigmoid, 19, 0);
  std::vector<CriterionStatistics> statistics;
  for (const auto& [applicable, passed] : table) {
    const int64_t num_applicable = static_cast<int64_t>(std::lround(applicable * 100));
    statistics.push_back({.num_judged = 10000,
                          .num_applicable = num_applicable,
                          .sum = passed / 100 * static_cast<double>(num_applicable)});
  }
  for (const std::optional<double> threshold : {std::optional<double>(), std::optional(0.8)}) {
    const auto rubric = build_rubric(candidates, statistics, {.threshold = threshold});
    ASSERT_TRUE(rubric.ok()) << rubric.status().message();
    std::string found;
    for (const RubricCriterion& one : rubric->criteria) {
      found += one.name + (one.stratum == Stratum::kEasy ? " easy, " : " hard, ");
    }
    EXPECT_EQ(found, "c1 easy, c0 easy, c16 easy, c6 easy, c10 hard, c12 hard, ");
  }
  EXPECT_EQ(
      build_rubric(candidates, statistics, {.min_applicability = 0.9995, .threshold = 0.5})
          .status()
          .message(),
      "all 2 candidates that apply are easy at a threshold of 0.5 (pass rates 0.694 to 0.861); "
      "choose one between them, or leave --threshold out");
}

class RubricFile : public ::testing::Test {
 protected:
  Result<RubricConfig> load(const std::string& yaml) {
    test::write_file(path(), yaml);
    RewardRegistry registry("reward");
    register_builtin_rewards(registry);
    return load_rubric(path(), registry);
  }
  std::string message(const std::string& yaml) {
    std::string text = load(yaml).status().message();
    for (size_t at; (at = text.find(path())) != std::string::npos;) {
      text.replace(at, path().size(), "FILE");
    }
    return text;
  }
  static std::vector<std::string> known() {
    RewardRegistry registry("reward");
    register_builtin_rewards(registry);
    return registry.names();
  }
  std::string path() const { return folder_.path() + "/rubric.yaml"; }
  test::TemporaryFolder folder_;
};

TEST_F(RubricFile, IsReadWithItsDefaults) {
  const auto rubric = load(R"(name: mine
answer: {check: math}
criteria:
  - {name: tags, check: tags, options: {tags: think, outside: after}}
  - {name: brief, check: length, options: {max: 200, unit: characters}, stratum: hard}
)");
  ASSERT_TRUE(rubric.ok()) << rubric.status().message();
  EXPECT_EQ(rubric->alpha, 0.7);
  EXPECT_EQ(rubric->window, 20);
  EXPECT_EQ(rubric->criteria[1].stratum, Stratum::kHard);
}

TEST_F(RubricFile, NamesAllProblemsWithTheirLines) {
  EXPECT_EQ(message(R"(name: mine
alpha: 1.5
answer: {check: maths}
criteria:
  - {name: a, check: tags, weight: 0.5}
  - {name: a, check: tags, weight: 0.4}
  - {name: b, chek: tags, stratum: middle}
)"),
            "FILE:2:8: 'alpha' must be in [0, 1], got '1.5'\n"
            "FILE:3:17: answer.check: unknown reward 'maths'; did you mean 'math'?; known: " +
                join(known(), ", ") +
                "\nFILE:6:12: criteria[1].name: 'a' is taken; give each criterion a name of its "
                "own\n"
                "FILE:7:15: unknown key 'chek' in 'criteria[2]'; did you mean 'check'?\n"
                "FILE:7:36: 'criteria[2].stratum' must be one of easy, hard, got 'middle'");
  // Rules that need a value which could not be read are left out; all others are not.
  EXPECT_EQ(message(R"(alpha: x
answer: {check: math}
lambda_base: 2
lambda_max: 0.5
criteria:
  - {name: a, check: format, stratum: easy, weight: 0.5}
  - {name: [a], check: tags, stratum: hard, weight: heavy}
)"),
            "FILE: missing 'name' at the top level; it must not be empty\n"
            "FILE:1:8: 'alpha' must be a number, got 'x'\n"
            "FILE:3:14: 'lambda_base' must be in [0, 1], got '2'\n"
            "FILE:6:5: criteria[0].options: reward format: pattern: is missing; expected a regular "
            "expression (RE2)\n"
            "FILE:7:12: 'criteria[1].name' must be a text, got a list\n"
            "FILE:7:53: 'criteria[1].weight' must be a number, got 'heavy'");
  EXPECT_EQ(message(R"(name: mine
answer: {check: maths}
criteria:
  - {name: a, check: tags, weight: 0.5}
  - {name: a, check: tags, weight: 0.4}
  - {name: b, check: tags, options: {tag: x}}
)"),
            "FILE:5:12: criteria[1].name: 'a' is taken; give each criterion a name of its own\n"
            "FILE:4:3: criteria[2].weight: 2 of the 3 criteria of stratum easy have a weight; give "
            "one to all, or to none\n"
            "FILE:4:3: criteria has none with stratum hard, which a ramp needs; add one, or set "
            "schedule to uniform\n"
            "FILE:2:17: answer.check: unknown reward 'maths'; did you mean 'math'?; known: " +
                join(known(), ", ") +
                "\nFILE:6:37: criteria[2].options: reward tags: unknown option 'tag'; did you mean "
                "'tags'?; known: tags, outside, score");
}

}  // namespace
}  // namespace gradus::rewards
