// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/files.h"
#include "tests/support/run_gradus.h"
#include "tests/support/tiny_run.h"

namespace gradus::cli {
namespace {

class MathCommand : public testing::Test {
 protected:
  test::Outcome run(const std::string& rows, const std::string& options = "") {
    const std::string path = folder_.path() + "/rows.jsonl";
    test::write_file(path, rows);
    return test::run_gradus("reward math " + options + " < " + path + " 2>&1");
  }
  test::TemporaryFolder folder_;
};

TEST_F(MathCommand, PrintsVerdictRuleAndBothReadings) {
  const auto outcome = run(R"({"gold": "$\\frac12$", "answer": "it is \\boxed{0.5}"})"
                           "\n");
  EXPECT_EQ(outcome.output,
            R"({"score":1.0,"status":"ok","rule":"decimal within tolerance","gold_parsed":"1/2",)"
            R"("answer_parsed":"1/2"})"
            "\n");
  EXPECT_EQ(outcome.exit_code, 0);
}

TEST_F(MathCommand, ModesDiffer) {
  const std::string row = R"({"gold": "$5$", "answer": "$5t$"})"
                          "\n";
  EXPECT_NE(run(row, "--mode strict").output.find("\"score\":0.0"), std::string::npos);
  EXPECT_NE(run(row, "--mode compat").output.find("\"score\":1.0"), std::string::npos);
  EXPECT_NE(run(row).output.find("\"score\":0.0"), std::string::npos);
}

TEST_F(MathCommand, AFailedCheckHasNoScore) {
  EXPECT_NE(
      run(R"({"gold": "", "answer": "5"})"
          "\n")
          .output.find(R"({"score":null,"status":"invalid_gold","rule":"the ground truth is ''; )"),
      std::string::npos);
}

TEST_F(MathCommand, NamesABadRowAndABadMode) {
  const auto missing = run("{\"gold\": \"5\"}\n");
  EXPECT_EQ(
      missing.output,
      "gradus: error: standard input:1: no 'answer'; expected {\"gold\": \"...\", \"answer\": "
      "\"...\"}\n");
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_NE(run("", "--mode lenient").exit_code, 0);
}

class MathRun : public test::TinyRun {
 protected:
  // Two steps on rows with these ground truths, judged by the reward `math`.
  test::RunOutcome run(const std::vector<std::string>& ground_truths) {
    std::vector<nlohmann::json> rows;
    for (const std::string& truth : ground_truths) {
      rows.push_back({{"prompt", "1+1="},
                      {"data_source", "sums"},
                      {"reward_model", {{"ground_truth", truth}}}});
    }
    test::write_file(path("rows.jsonl"), test::json_lines(rows));
    std::string settings = R"(
        --set 'data.train.task=""' --set data.train.task_options={} --set data.train.num_rows=0
        --set 'data.eval.task=""' --set data.eval.task_options={} --set data.eval.num_rows=0
        --set eval.every_steps=0 --set eval.before_training=false --set trainer.num_steps=2
        --set trainer.prompts_per_step=4 --set trainer.mini_batches=1
        --set 'reward.parts=[{name: math, options: {mode: strict}}]')";
    std::replace(settings.begin(), settings.end(), '\n', ' ');
    return call(arguments("train", "math",
                          settings + " --set data.train.files=[" + path("rows.jsonl") + "]"));
  }
};

TEST_F(MathRun, TrainsFromYaml) {
  const auto outcome = run({"\\frac{1}{2}", "x^2+1", "$[0,1)$", "\\boxed{\\{1,2\\}}"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.messages;
  const auto steps = test::json_rows(test::read_file(path("runs/math/metrics.jsonl")));
  ASSERT_EQ(steps.size(), 2u);
  for (const auto& step : steps) {
    EXPECT_EQ(step.at("reward/math/failed_fraction"), 0);
    EXPECT_LE(step.at("reward/math/mean"), 1);
  }
}

TEST_F(MathRun, NamesEveryRowWhoseGroundTruthCannotBeRead) {
  const auto outcome = run({"7", "  ", "8", "\\frac{1}{"});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_NE(outcome.messages.find("rows.jsonl:4: reward 'math': the ground truth is '\\frac{1}{'"),
            std::string::npos)
      << outcome.messages;
  EXPECT_NE(
      outcome.messages.find("rows.jsonl:2: reward 'math': the ground truth is '  '; expected an "
                            "answer that can be read, a number or a LaTeX expression, alone "
                            "or in \\boxed{}"),
      std::string::npos)
      << outcome.messages;
}

}  // namespace
}  // namespace gradus::cli
