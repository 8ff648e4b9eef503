// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "common/strings.h"
#include "data/tasks/task.h"
#include "rewards/internal/expression.h"
#include "rewards/reward.h"

namespace gradus::rewards {
namespace {

RewardPart judge(const std::string& name, const RewardOptions& options, const std::string& gold,
                 const std::string& response) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  const auto reward = registry.create(name, options);
  EXPECT_TRUE(reward.ok()) << reward.status().message();
  data::Prompt prompt;
  prompt.answer = gold;
  data::Trajectory trajectory;
  trajectory.text = response;
  const Group group{&prompt, std::span(&trajectory, 1)};
  return (*reward)->score_batch(std::span(&group, 1))[0];
}

std::string refusal(const std::string& name, const RewardOptions& options) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  return registry.create(name, options).status().message();
}

TEST(ExactReward, ComparesTextButForSpaces) {
  EXPECT_EQ(judge("exact", {}, "3 7 12", " 3  7\n12 ").score, 1);
  EXPECT_EQ(judge("exact", {}, "3 7 12", "3 12 7").score, 0);
  EXPECT_EQ(judge("exact", {}, "cat", "Cat").score, 0);
  EXPECT_EQ(judge("exact", {}, "cat", "Cat").detail, "is not 'cat'");
  EXPECT_EQ(judge("exact", {{"ignore_case", "true"}}, "cat", "CAT").score, 1);
  EXPECT_EQ(
      judge("exact", {{"ignore_case", "true"}}, "\xc3\xa9t\xc3\xa9", "\xc3\x89T\xc3\x89").score, 1);
  EXPECT_EQ(judge("exact", {}, "\xc3\xa9", "e\xcc\x81").score, 1);  // composed and decomposed
  EXPECT_EQ(judge("exact", {{"strip", "false"}}, "cat", "cat ").score, 0);
  EXPECT_EQ(judge("exact", {}, "\xff", "\xff").score,
            1);  // bytes that are no UTF-8 compare as they are
}

TEST(ExactReward, TakesTheLineAfterTheLastMarker) {
  const RewardOptions marked = {{"marker", "Answer:"}};
  EXPECT_EQ(judge("exact", marked, "cat", "Answer: dog\nAnswer: cat \nbye").score, 1);
  EXPECT_EQ(judge("exact", marked, "cat", "cat").detail, "no 'Answer:' in the response");
  EXPECT_EQ(judge("exact", {{"marker", "\\boxed{"}}, "{x}", "\\boxed{{x}} and }").score, 1);
  EXPECT_EQ(judge("exact", {{"marker", "<answer>"}}, "a b", "<answer>\na\nb</answer>c").score, 1);
}

TEST(ExactReward, CallsAnEmptyGroundTruthInvalid) {
  EXPECT_EQ(judge("exact", {}, " ", "").status, RewardStatus::kInvalidGold);
}

TEST(FormatReward, MatchesTheWholeResponseOrAPartOfIt) {
  const RewardOptions full = {{"pattern", "<think>.*</think>\\s*<answer>.*</answer>"}};
  EXPECT_EQ(judge("format", full, "", "<think>a\nb</think>\n<answer>7</answer>").score, 1);
  EXPECT_EQ(judge("format", full, "", "x<think>a</think><answer>7</answer>").score, 0);
  EXPECT_EQ(judge("format", {{"pattern", "[0-9]+"}, {"match", "partial"}}, "", "is 7.").score, 1);
  EXPECT_EQ(
      judge("format", {{"pattern", "a.b"}, {"dot_matches_newline", "false"}}, "", "a\nb").score, 0);
  EXPECT_EQ(judge("format", {{"pattern", "a"}}, "", "b").detail, "does not match a");
}

TEST(FormatReward, RefusesBadPatterns) {
  EXPECT_EQ(refusal("format", {}),
            "reward format: pattern: is missing; expected a regular expression (RE2)");
  EXPECT_EQ(refusal("format", {{"pattern", "(a"}}),
            "reward format: pattern: '(a' is no regular expression of RE2: missing ): (a");
  EXPECT_EQ(refusal("format", {{"pattern", "a"}, {"match", "some"}}),
            "reward format: match: is 'some'; expected one of: full, partial");
}

TEST(Expression, WorksOutFractionsExactly) {
  EXPECT_EQ(evaluate("8 / (3 - 8 / 3)")->value, (Fraction{24, 1}));
  EXPECT_EQ(evaluate("1/3+1/6")->value, (Fraction{1, 2}));
  EXPECT_EQ(evaluate("2-3-4")->value, (Fraction{-5, 1}));
  EXPECT_EQ(evaluate("2+3*4/6")->value, (Fraction{4, 1}));
  EXPECT_EQ(evaluate("(7\xc3\x97"
                     "3 \xe2\x88\x92 1)\xc3\xb7"
                     "4")
                ->value,
            (Fraction{5, 1}));
  EXPECT_EQ(evaluate("(12+3)*4")->numbers, (std::vector<int64_t>{12, 3, 4}));
}

TEST(Expression, SaysWhatItCannotRead) {
  const auto message = [](const std::string& text) { return evaluate(text).status().message(); };
  EXPECT_EQ(message(""), "ends too early");
  EXPECT_EQ(message("1+"), "ends too early");
  EXPECT_EQ(message("(1+2"), "a bracket is not closed");
  EXPECT_EQ(message("1+2)"), "unexpected ')' at byte 3");
  EXPECT_EQ(message("-1"), "unexpected '-' at byte 0");
  EXPECT_EQ(message("2**3"), "unexpected '*' at byte 2");
  EXPECT_EQ(message("7//2"), "unexpected '/' at byte 2");
  EXPECT_EQ(message("1 2"), "unexpected '2' at byte 2");
  EXPECT_EQ(message("x"), "unexpected 'x' at byte 0");
  EXPECT_EQ(message("1/(2-2)"), "division by zero");
  EXPECT_EQ(message("999999999999999*999999999999999"), "a value beyond 64 bits");
  EXPECT_EQ(message(std::string(60, '(')), "more than 50 nested brackets");
  EXPECT_EQ(message(std::string(1001, '1')), "longer than 1000 bytes");
}

TEST(CountdownReward, WantsEachNumberOnceAndTheTarget) {
  const std::string gold = R"({"target": 24, "numbers": [3, 3, 8, 8]})";
  const RewardOptions options = {{"format_score", "0.1"}};
  const auto part = [&](const std::string& response) {
    return judge("countdown", options, gold, response);
  };
  EXPECT_EQ(part("let me see\nAnswer: 8 / (3 - 8 / 3)").score, 1);
  EXPECT_EQ(part("Answer: 8/(3-8/3) = 24.").score, 1);
  EXPECT_EQ(part("Answer: 8/(3-8/3) = 25").score, 0.1);
  EXPECT_EQ(part("Answer: 3*8").detail, "uses the numbers 3 8, not 3 3 8 8");
  EXPECT_EQ(part("Answer: 3*8").score, 0.1);
  EXPECT_EQ(part("Answer: 3+3+8+8").detail, "comes to 22, not 24");
  EXPECT_EQ(part("Answer: 8/3+8/3").detail, "comes to 16/3, not 24");
  EXPECT_EQ(part("Answer: 24").score, 0.1);
  EXPECT_EQ(part("Answer: twenty").score, 0);
  EXPECT_EQ(part("Answer: twenty").detail, "not an expression: unexpected 't' at byte 0");
  EXPECT_EQ(part("8/(3-8/3)").detail, "no 'Answer:' in the response");
  EXPECT_EQ(
      judge("countdown", {{"marker", "<answer>"}}, gold, "<answer> 8/(3-8/3) </answer>").score, 1);
}

TEST(CountdownReward, CallsABadPuzzleInvalid) {
  for (const std::string gold :
       {"24", "{}", R"({"target": 24, "numbers": []})", "", R"({"target": 2.5, "numbers": [1]})"}) {
    const RewardPart part = judge("countdown", {}, gold, "Answer: 1");
    EXPECT_EQ(part.status, RewardStatus::kInvalidGold) << gold;
    EXPECT_EQ(part.detail,
              "the ground truth is '" + gold +
                  "'; expected {\"target\": whole number, \"numbers\": [whole numbers]}");
  }
}

TEST(OverlongPenalty, IsLinearInTheBuffer) {
  // DAPO's setting: 20480 at most, 4096 of buffer; (18432 - 16384) / 4096 = 1/2.
  EXPECT_EQ(overlong_penalty(18432, 20480, 4096, 1, false), -0.5);
  EXPECT_EQ(overlong_penalty(16384, 20480, 4096, 1, false), 0);
  EXPECT_EQ(overlong_penalty(100, 20480, 4096, 1, false), 0);
  EXPECT_EQ(overlong_penalty(20480, 20480, 4096, 2, false), -2);
  EXPECT_EQ(overlong_penalty(22528, 20480, 4096, 1, false), -1.5);
  EXPECT_EQ(overlong_penalty(22528, 20480, 4096, 1, true), -1);
}

// Tasks and rewards must fit each other: the reference response of a row gets full marks from the
// reward that the task names, and the answer of another row does not.
class TaskReward : public testing::TestWithParam<std::string> {};

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const data::TaskInfo& info : data::task_infos()) names.push_back(info.name);
  return names;
}

const data::TaskInfo& info_of(const std::string& name) {
  for (const data::TaskInfo& info : data::task_infos()) {
    if (info.name == name) return info;
  }
  GRADUS_CHECK(false, name);
}

// "marker=Answer: ignore_case=true"
RewardOptions parse_options(const std::string& text) {
  RewardOptions options;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const size_t equals = text.find('=', begin);
    options[text.substr(begin, equals - begin)] = text.substr(equals + 1, end - equals - 1);
    begin = end + 1;
  }
  return options;
}

TEST_P(TaskReward, GivesFullMarksToTheReferenceAndNoneToAnother) {
  const data::TaskInfo& info = info_of(GetParam());
  const RewardOptions natural = parse_options(info.reward_options);
  RewardOptions compact = natural, compact_steps = natural;
  compact.erase("marker");
  if (info.reward == "countdown") compact["marker"] = "";
  compact_steps = compact;
  if (info.reward != "number") compact_steps["marker"] = ";";
  struct Form {
    data::TaskOptions task;
    RewardOptions reward;
  };
  const std::vector<Form> forms = {
      {{}, natural},
      {{{"solution", "answer"}}, natural},
      {{{"style", "compact"}, {"solution", "answer"}}, compact},
      {{{"style", "compact"}}, compact_steps},
  };
  for (const Form& form : forms) {
    int num_equal = 0;
    for (uint64_t index = 0; index < 100; ++index) {
      const auto row = data::make_row(info.name, form.task, 21, index);
      const auto other = data::make_row(info.name, form.task, 22, index);
      ASSERT_TRUE(row.ok() && other.ok());
      const RewardPart part = judge(info.reward, form.reward, row->ground_truth, row->response);
      EXPECT_EQ(part.status, RewardStatus::kOk) << part.detail;
      EXPECT_EQ(part.score, 1) << row->response << "\n" << part.detail;
      if (other->ground_truth == row->ground_truth) {
        ++num_equal;
      } else if (info.reward != "countdown") {
        EXPECT_EQ(judge(info.reward, form.reward, row->ground_truth, other->response).score, 0)
            << other->response;
      }
    }
    EXPECT_LT(num_equal, 40);
  }
}

INSTANTIATE_TEST_SUITE_P(Builtin, TaskReward, testing::ValuesIn(task_names()),
                         [](const auto& parameter) { return parameter.param; });

}  // namespace
}  // namespace gradus::rewards
