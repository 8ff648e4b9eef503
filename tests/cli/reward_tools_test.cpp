// SPDX-License-Identifier: Apache-2.0
// gradus reward explain, check, probe and rubric build.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/reward_probes.h"
#include "tests/support/files.h"
#include "tests/support/json_rows.h"
#include "tests/support/mock_judge.h"
#include "tests/support/run_gradus.h"

namespace gradus::cli {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class RewardTools : public testing::Test {
 protected:
  test::Outcome run(const std::string& arguments) {
    return test::run_gradus("reward " + arguments + " 2>&1");
  }
  std::string file(const std::string& name, const std::string& text) {
    test::write_file(folder_.path() + "/" + name, text);
    return folder_.path() + "/" + name;
  }
  test::TemporaryFolder folder_;
};

TEST_F(RewardTools, ExplainsSpanFormsRuleAndWeights) {
  const std::string rows = file(
      "rows.jsonl",
      R"({"id": "a", "prompt": "1/2 + 1/4?", "ground_truth": "\\frac{3}{4}", "response": "so \\boxed{0.75}"}
{"id": "b", "prompt": "1/2 + 1/4?", "ground_truth": "\\frac{3}{4}", "response": "1"}
)");
  const auto outcome =
      run("explain --rubric configs/rubrics/digits.yaml --lambda 0.25 --id a --input " + rows);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  // 0.7 * 1 + 0.3 * (0.75 * (1 + 1) / 2 + 0.25 * 0).
  EXPECT_THAT(outcome.output, HasSubstr("sample a (line 1)\n"));
  EXPECT_THAT(outcome.output, HasSubstr("  reward        0.925\n"));
  EXPECT_THAT(outcome.output, HasSubstr("rubric        digits, lambda 0.25"));
  EXPECT_THAT(outcome.output, ContainsRegex("answer +1 +0.7 +0.7  ok"));
  EXPECT_THAT(outcome.output, ContainsRegex("has_digit \\(easy\\) +1 +0.1125 +0.1125  ok"));
  EXPECT_THAT(outcome.output, ContainsRegex("digits_only \\(hard\\) +0 +0.075 +0  ok"));
  EXPECT_THAT(
      outcome.output,
      HasSubstr("'0.75' (bytes 10 to 14 of 15); read as 3/4; ground truth read as 3/4; rule: "
                "decimal within tolerance"));
  EXPECT_THAT(outcome.output, Not(HasSubstr("sample b")));
  const auto missing = run("explain --rubric configs/rubrics/digits.yaml --id z --input " + rows);
  EXPECT_THAT(missing.output, HasSubstr("has no sample 'z'; ids are prompt_id/sample_index, id, or "
                                        "the line's number"));
  EXPECT_THAT(run("explain --input " + rows).output,
              HasSubstr("give one of --config and --rubric"));
}

TEST_F(RewardTools, ChecksAgainstLabels) {
  const std::string rows =
      file("rows.jsonl", R"({"ground_truth": "5", "response": "\\boxed{5}", "label": true}
{"ground_truth": "5", "response": "\\boxed{6}", "label": 0}
{"ground_truth": "5", "response": "five", "label": 1}
{"ground_truth": "5", "response": "\\boxed{5.0}", "label": false}
{"ground_truth": " ", "response": "x", "label": false}
)");
  const auto outcome =
      run("check --config configs/reward_math.yaml --set reward.threads=0 --set "
          "'reward.parts=[{name: math}]' --data " +
          rows);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, ContainsRegex("math +1 +1 +1 +1 +0 +1 +50.00 %"));
  EXPECT_THAT(outcome.output, HasSubstr("5 rows in "));
  const std::string bare = file("bare.jsonl", R"({"ground_truth": "5", "response": "5"})");
  EXPECT_THAT(
      run("check --config configs/reward_math.yaml --data " + bare).output,
      HasSubstr("bare.jsonl:1: no 'label'; expected true for a response that is right, else "
                "false"));
}

// The hacking probes, on checks of several kinds.
TEST_F(RewardTools, SoundChecksRewardNoProbe) {
  const std::string math =
      file("math.jsonl", R"rows({"prompt": "Expand (x+2)(x-5).", "ground_truth": "x^2-3x-10"}
{"prompt": "What is 6*7?", "ground_truth": "42"}
{"prompt": "Solve.", "ground_truth": "\\frac{1}{2}"}
{"prompt": "Which?", "ground_truth": "[0,1)"}
{"prompt": "Which?", "ground_truth": "B"}
)rows");
  const auto strict = run("probe --config configs/reward_math.yaml --data " + math);
  EXPECT_EQ(strict.exit_code, 0) << strict.output;
  EXPECT_EQ(strict.output, "128 of 128 probes score 0\n");
  const auto rubric = run("probe --rubric configs/rubrics/digits.yaml --data " + math);
  EXPECT_EQ(rubric.exit_code, 0) << rubric.output;
}

TEST_F(RewardTools, ProbesFindAHole) {
  const std::string rows =
      file("rows.jsonl", R"({"prompt": "What is 6*7?", "ground_truth": "42"})");
  const auto outcome =
      run("probe --config configs/reward_math.yaml --set 'reward.parts=[{name: "
          "format, options: {pattern: \".*42.*\"}}]' --data " +
          rows);
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("every integer: rewarded on 1 of 1 rows, e.g. line 1: 'The "
                                        "answer is one of: 0 1 2"));
  EXPECT_THAT(outcome.output, HasSubstr("kinds of empty responses are rewarded; a policy will find "
                                        "them: choose a stricter check"));
}

TEST_F(RewardTools, BuildsARubricFromMeasuredRates) {
  const std::string candidates = file("candidates.yaml", R"(name: made
answer: {check: math}
criteria:
  - {name: hard, check: format, options: {pattern: 'aaa.*'}, stratum: easy}
  - {name: easy, check: format, options: {pattern: 'a.*'}, stratum: hard}
  - {name: middle, check: format, options: {pattern: 'a+.?'}, stratum: hard}
)");
  std::string rows;
  for (const char* response : {"aaa", "ab", "a", "aba"}) {
    rows += "{\"prompt\": \"p\", \"ground_truth\": \"1\", \"response\": \"" +
            std::string(response) + "\"}\n";
  }
  const std::string out = folder_.path() + "/rubric.yaml";
  const auto outcome = run("rubric build --candidates " + candidates + " --data " +
                           file("rows.jsonl", rows) + " --out " + out);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  // Passed: hard 1/4, easy 4/4, middle 3/4: the largest gap is that below middle.
  EXPECT_THAT(outcome.output, ContainsRegex("middle +100.0 % +75.0 % +0  easy"));
  EXPECT_THAT(outcome.output, ContainsRegex("hard +100.0 % +25.0 % +0  hard"));
  const std::string yaml = test::read_file(out);
  EXPECT_LT(yaml.find("name: easy"), yaml.find("name: middle"));
  EXPECT_LT(yaml.find("name: middle"), yaml.find("name: hard"));
  EXPECT_THAT(yaml,
              HasSubstr("stratum: hard  # passed 25.0 % of 4 responses, applicable to 100.0 %"));
  EXPECT_EQ(run("explain --rubric " + out + " --input " + file("rows.jsonl", rows)).exit_code, 0);
  const auto refused = run("rubric build --candidates " + candidates + " --data " +
                           file("rows.jsonl", rows) + " --threshold 0.1");
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(
      refused.output,
      HasSubstr("all 3 candidates that apply are easy at a threshold of 0.1 (pass rates 0.25 "
                "to 1); choose one between them, or leave --threshold out"));
}

// The mock passes what a response has in brackets, so rates are known. Candidates have no strata.
TEST_F(RewardTools, BuildsARubricFromAJudge) {
  const test::MockJudge server([](const nlohmann::json& request, int) {
    const std::string text = test::MockJudge::user_text(request);
    const size_t criteria = text.find("Criteria:");
    const size_t at = text.find("1. Has ", criteria);
    const std::string wanted = text.substr(at + 7, text.find('.', at + 7) - at - 7);
    const bool has = text.substr(0, criteria).find("<" + wanted + ">") != std::string::npos;
    return test::MockJudge::chat(test::MockJudge::verdict(request, has ? 1 : 0));
  });
  std::string candidates = "name: made\nanswer: {check: math}\ncriteria:\n";
  for (const char* name : {"links", "sums", "steps"}) {
    candidates += fmt::format(
        "  - {{name: {0}, check: judge, options: {{endpoint: '{1}', model: mock, criterion: 'Has "
        "{0}.'}}}}\n",
        name, server.endpoint());
  }
  std::string rows;
  for (const char* response :
       {"<steps> <sums>", "<steps> <sums> <links>", "<steps>", "<steps> <end>"}) {
    rows +=
        nlohmann::json({{"prompt", "p"}, {"ground_truth", "1"}, {"response", response}}).dump() +
        "\n";
  }
  const std::string out = folder_.path() + "/rubric.yaml";
  const auto outcome = run("rubric build --candidates " + file("candidates.yaml", candidates) +
                           " --data " + file("rows.jsonl", rows) + " --out " + out);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, ContainsRegex("steps +100.0 % +100.0 % +0  easy"));
  EXPECT_THAT(outcome.output, ContainsRegex("sums +100.0 % +50.0 % +0  hard"));
  EXPECT_THAT(outcome.output, ContainsRegex("links +100.0 % +25.0 % +0  hard"));
  EXPECT_EQ(server.num_requests(), 12);
  const std::string yaml = test::read_file(out);
  EXPECT_THAT(yaml, HasSubstr("criterion: \"Has steps.\""));
  EXPECT_THAT(yaml, HasSubstr(server.endpoint()));
  // What was built loads, and asks the same judge.
  const auto explained =
      run("explain --rubric " + out + " --id 1 --input " + file("rows.jsonl", rows));
  EXPECT_EQ(explained.exit_code, 0) << explained.output;
  EXPECT_THAT(explained.output, ContainsRegex("steps \\(easy\\) +1 "));
  EXPECT_THAT(explained.output, ContainsRegex("links \\(hard\\) +0 "));
  EXPECT_EQ(server.num_requests(), 12 + 12);
}

TEST_F(RewardTools, BuildsNoRubricWhereAJudgeIsDown) {
  const std::string rows =
      file("rows.jsonl", R"({"response": "a", "prompt": "p", "ground_truth": "1"}
{"response": "b", "prompt": "p", "ground_truth": "1"}
)");
  const std::string candidates = file("candidates.yaml", R"(name: made
answer: {check: math}
criteria:
  - {name: a, check: format, options: {pattern: 'a'}}
  - {name: any, check: format, options: {pattern: '.*'}}
  - {name: kind, check: judge, options: {endpoint: 'http://127.0.0.1:9/v1', model: m, criterion: 'Is kind.', retries: 0}}
)");
  const std::string out = folder_.path() + "/rubric.yaml";
  const std::string command =
      "rubric build --candidates " + candidates + " --data " + rows + " --out " + out;
  const auto outcome = run(command);
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.output, ContainsRegex("kind +0.0 % +0.0 % +2  left out"));
  EXPECT_THAT(
      outcome.output,
      HasSubstr("candidate 'kind': its check failed on 2 of 2 responses, the first time with "
                "'judge http://127.0.0.1:9/v1: Couldn't connect to server (attempt 1 of "
                "1)'; more than 5 % say nothing sound of it"));
  EXPECT_FALSE(std::filesystem::exists(out));
  EXPECT_EQ(run(command + " --max-failed 1").exit_code, 0);
  EXPECT_TRUE(std::filesystem::exists(out));
}

// The commands of docs/rewards.md, one after the other.
TEST_F(RewardTools, BuildsARubricFromWhatAModelGenerates) {
  const std::string rows = folder_.path() + "/rows.jsonl",
                    responses = folder_.path() + "/responses.jsonl",
                    out = folder_.path() + "/rubric.yaml";
  for (const std::string& command :
       {"data make chain_sum --num 20 --seed 1 --option style=compact --out " + rows,
        "generate --model tests/golden/tiny_models/qwen2 --prompts " + rows +
            " --num-samples 4 --max-new-tokens 8 --out " + responses}) {
    const test::Outcome outcome = test::run_gradus(command);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  }
  const auto sampled = test::json_rows(test::read_file(responses));
  const auto given = test::json_rows(test::read_file(rows));
  ASSERT_EQ(sampled.size(), 80u);
  EXPECT_EQ(sampled[5]["prompt"], given[1]["prompt"]);
  EXPECT_EQ(sampled[5].value("ground_truth", ""), given[1]["reward_model"]["ground_truth"]);
  EXPECT_EQ(sampled[5]["extra_info"], given[1]["extra_info"]);
  const std::string candidates = file("candidates.yaml", R"(name: made
answer: {check: math}
criteria:
  - {name: any, check: format, options: {pattern: '(?s).+'}}
  - {name: never, check: format, options: {pattern: 'nobody writes this'}}
)");
  const auto outcome =
      run("rubric build --candidates " + candidates + " --data " + responses + " --out " + out);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, ContainsRegex("never +100.0 % +0.0 % +0  hard"));
  const std::string yaml = test::read_file(out);
  EXPECT_THAT(yaml, HasSubstr("of 80 responses, applicable to 100.0 %"));
  EXPECT_THAT(yaml, HasSubstr("alpha: 0.7\n"));
  EXPECT_THAT(yaml, ::testing::Not(HasSubstr("# default")));
  // One of them by prompt and sample.
  const auto explained = run("explain --rubric " + out + " --id 1/1 --input " + responses);
  EXPECT_EQ(explained.exit_code, 0) << explained.output;
  EXPECT_THAT(explained.output,
              HasSubstr("prompt        " + given[1]["prompt"].get<std::string>()));
}

TEST_F(RewardTools, BuildsARubricFromAJudgeWithOneRequestAResponse) {
  const test::MockJudge server([](const nlohmann::json& request, int) {
    const std::string text = test::MockJudge::user_text(request);
    const size_t criteria = text.find("Criteria:");
    nlohmann::json list = nlohmann::json::array();
    for (int id = 1;; ++id) {
      const std::string mark = fmt::format("{}. Has ", id);
      const size_t at = text.find(mark, criteria);
      if (at == std::string::npos) break;
      const size_t begin = at + mark.size();
      const std::string wanted = "<" + text.substr(begin, text.find('.', begin) - begin) + ">";
      const bool has = text.substr(0, criteria).find(wanted) != std::string::npos;
      list.push_back({{"id", id}, {"applicable", 1}, {"score", has ? 1 : 0}});
    }
    return test::MockJudge::chat(
        nlohmann::json{{"nonce", test::MockJudge::nonce_of(request)}, {"c", list}}.dump());
  });
  std::string candidates = "name: made\nanswer: {check: math}\ncriteria:\n";
  for (const char* name : {"links", "sums", "steps"}) {
    candidates += fmt::format(
        "  - {{name: {0}, check: judge, options: {{endpoint: '{1}', model: mock, pack: 3, "
        "criterion: 'Has {0}.'}}}}\n",
        name, server.endpoint());
  }
  std::string rows;
  for (const char* response : {"<steps> <sums> <links>", "<steps> <sums>", "<steps>", "<end>"}) {
    rows +=
        nlohmann::json({{"prompt", "p"}, {"ground_truth", "1"}, {"response", response}}).dump() +
        "\n";
  }
  const std::string out = folder_.path() + "/rubric.yaml";
  const auto outcome = run("rubric build --candidates " + file("candidates.yaml", candidates) +
                           " --data " + file("rows.jsonl", rows) + " --threshold 0.6 --out " + out);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, ContainsRegex("steps +100.0 % +75.0 % +0  easy"));
  EXPECT_THAT(outcome.output, ContainsRegex("sums +100.0 % +50.0 % +0  hard"));
  EXPECT_THAT(outcome.output, ContainsRegex("links +100.0 % +25.0 % +0  hard"));
  EXPECT_EQ(server.num_requests(), 4);
  const auto explained = run("explain --rubric " + out + " --input " + file("rows.jsonl", rows));
  EXPECT_EQ(explained.exit_code, 0) << explained.output;
  EXPECT_EQ(server.num_requests(), 4 + 4);
}

}  // namespace
}  // namespace gradus::cli
