// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "tests/support/files.h"
#include "tests/support/run_gradus.h"

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

}  // namespace
}  // namespace gradus::cli
