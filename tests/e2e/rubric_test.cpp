// SPDX-License-Identifier: Apache-2.0
// Training on a rubric: the same rewards, curriculum, metrics and weights on any number of ranks
// and after any kill.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "common/rng.h"
#include "tests/support/killed_run.h"
#include "tests/support/mock_judge.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using test::MockJudge;
using ::testing::HasSubstr;

constexpr int kNumSteps = 6;

class RubricRun : public test::KilledRun {
 protected:
  // A judge whose verdict depends on the response alone. Every seventh request fails at first;
  // responses that it refuses make their groups fall back to the answer.
  RubricRun()
      : judge_([](const nlohmann::json& request, int number) -> MockJudge::Reply {
          if (number % 7 == 0) return {.status = 503};
          const std::string text = MockJudge::user_text(request);
          const size_t begin = text.find(" =====\n") + 7;
          const uint64_t hash = hash64(text.substr(begin, text.find("\n===== END OF") - begin));
          if (hash % 16 == 0) return {.status = 400, .body = "refused"};
          return MockJudge::chat(MockJudge::verdict(request, static_cast<double>(hash % 5) / 4));
        }) {}

  // About half of random responses have a capital letter; the gate opens at the second step and
  // the ramp ends at the fifth.
  void SetUp() override {
    KilledRun::SetUp();
    test::write_file(path("rubric.yaml"), fmt::format(R"(name: letters
window: 2
tau: 0.5
ramp_steps: 3
answer: {{check: format, options: {{pattern: '(?s).*[A-Z].*'}}}}
criteria:
  - {{name: any, check: format, options: {{pattern: '(?s).*[a-zA-Z0-9].*'}}}}
  - {{name: digit, check: format, options: {{pattern: '(?s).*[0-9].*'}}, stratum: hard}}
  - name: fine
    check: judge
    stratum: hard
    options: {{endpoint: '{}', model: mock, criterion: Is fine., backoff_s: 0.01, retries: 9}}
)",
                                                      judge_.endpoint()));
  }
  std::string options(const std::string& more = "") const {
    return "--set reward.parts=[] --set reward.rubric=" + path("rubric.yaml") +
           " --set run.checkpoint_every=1 --set run.keep_checkpoints=9 " + more;
  }
  std::vector<double> lambdas(const std::string& name) const {
    std::vector<double> all;
    for (const auto& row : metrics(name)) {
      if (row.contains("rubric/lambda")) all.push_back(row.at("rubric/lambda"));
    }
    return all;
  }
  // Expects the checkpoints, metrics and rewards of every response of run `expected`.
  void expect_same(const std::string& name, const std::string& expected) const {
    const auto rows = metrics(name), expected_rows = metrics(expected);
    ASSERT_EQ(rows.size(), expected_rows.size()) << name;
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto difference = nlohmann::json::diff(expected_rows[i], rows[i]);
      EXPECT_TRUE(difference.empty()) << name << ", row " << i << ": " << difference;
    }
    for (int step = 1; step <= kNumSteps; ++step) {
      const std::string checkpoint = fmt::format("step_{}", step);
      EXPECT_EQ(state(name, checkpoint), state(expected, checkpoint)) << name << " " << step;
      EXPECT_TRUE(rewards(name, step) == rewards(expected, step)) << name << " " << step;
    }
  }
  // Each response with its parts, weights and reward; details say how often the judge was asked.
  std::vector<nlohmann::json> rewards(const std::string& name, int step) const {
    auto rows = test::json_rows(
        test::read_file(path(fmt::format("runs/{}/rollouts/step_{}.jsonl", name, step))));
    EXPECT_EQ(rows.size(), 32u) << name << " " << step;
    for (nlohmann::json& row : rows) {
      EXPECT_EQ(row.at("parts").size(), 4u);
      for (nlohmann::json& part : row.at("parts")) part.erase("detail");
    }
    return rows;
  }

  MockJudge judge_;
};

TEST_F(RubricRun, IsTheSameOnOneTwoFourAndEightRanks) {
  train("train", "1", options());
  const std::vector<double> expected = lambdas("1");
  ASSERT_EQ(expected.size(), static_cast<size_t>(kNumSteps));
  EXPECT_EQ(expected[1], 0);
  EXPECT_GT(expected[2], 0);
  EXPECT_LT(expected[3], 1);
  EXPECT_EQ(expected[5], 1);
  double num_fallbacks = 0;
  for (const auto& row : metrics("1")) num_fallbacks += row.value("rubric/fallback_groups", 0.0);
  EXPECT_GT(num_fallbacks, 0) << "a judge that fails is part of the test";
  EXPECT_LT(num_fallbacks, 8 * kNumSteps);
  for (const int ranks : {2, 4, 8}) {
    const std::string name = std::to_string(ranks);
    train("train", name, options(), test::mpirun(ranks));
    expect_same(name, "1");
  }
}

TEST_F(RubricRun, IsTheSameAfterAKillAtEveryStep) {
  train("train", "whole", options());
  for (int step = 1; step < kNumSteps; ++step) {
    const bool was_killed = kill_at(
        std::string(GRADUS_BINARY) + " " +
            arguments("train", "killed", options(step == 1 ? "" : "--resume")),
        [&] { return fs::exists(path(fmt::format("runs/killed/checkpoints/step_{}", step))); });
    ASSERT_TRUE(was_killed) << "the kill after step " << step << " came too late";
    // Goes on on other ranks too, while the run itself is killed again.
    const std::string name = fmt::format("resumed_{}", step);
    fs::copy(path("runs/killed"), path("runs/" + name),
             fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    const int ranks = step % 2 == 0 ? 1 : 2;
    EXPECT_THAT(train("train", name, options("--resume"), ranks == 1 ? "" : test::mpirun(ranks)),
                HasSubstr("after step "));
    expect_same(name, "whole");
  }
  train("train", "killed", options("--resume"));
  expect_same("killed", "whole");
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

}  // namespace
}  // namespace gradus
