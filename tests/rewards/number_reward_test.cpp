// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "rewards/internal/number.h"
#include "rewards/reward.h"

namespace gradus::rewards {
namespace {

RewardPart judge(const RewardOptions& options, const std::string& gold,
                 const std::string& response) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  const auto reward = registry.create("number", options);
  EXPECT_TRUE(reward.ok()) << reward.status().message();
  data::Prompt prompt;
  prompt.answer = gold;
  data::Trajectory trajectory;
  trajectory.text = response;
  const Group group{&prompt, std::span(&trajectory, 1)};
  return (*reward)->score_batch(std::span(&group, 1))[0];
}

double score(const std::string& gold, const std::string& response) {
  return judge({}, gold, response).score;
}

std::string last_text(std::string_view text) {
  const auto found = last_number(text);
  if (!found.has_value()) return "none";
  return found->problem.empty() ? canonical_text(found->value) : found->problem;
}

TEST(Number, ReadsTheFormsThatPeopleWrite) {
  EXPECT_EQ(last_text("it is 42"), "42");
  EXPECT_EQ(last_text("it is 42."), "42");
  EXPECT_EQ(last_text("-7"), "-7");
  EXPECT_EQ(last_text("+7"), "7");
  EXPECT_EQ(last_text("x = \xe2\x88\x92"
                      "7"),
            "-7");  // U+2212
  EXPECT_EQ(last_text("$1,234,567.50"), "1234567.5");
  EXPECT_EQ(last_text(".5"), "0.5");
  EXPECT_EQ(last_text("00.500"), "0.5");
  EXPECT_EQ(last_text("1.5e3"), "1500");
  EXPECT_EQ(last_text("15E-4 m"), "0.0015");
  EXPECT_EQ(last_text("-6/8"), "-0.75");
  EXPECT_EQ(last_text("2/6"), "1/3");
  EXPECT_EQ(last_text("0/6"), "0");
  EXPECT_EQ(last_text("-0.0"), "0");
  EXPECT_EQ(last_text("6e40"), "6e+40");
  EXPECT_EQ(last_text("no number, nor 'e' or ."), "none");
  EXPECT_EQ(last_text("12km"), "12");
}

TEST(Number, TakesAMinusForASignOnlyWhereItIsOne) {
  EXPECT_EQ(last_text("5-3"), "3");
  EXPECT_EQ(last_text("(1)-3"), "3");
  EXPECT_EQ(last_text("pages 3\xe2\x80\x93"
                      "5"),
            "5");  // U+2013 between numbers
  EXPECT_EQ(last_text("5 -3"), "-3");
  EXPECT_EQ(last_text("=-3"), "-3");
  EXPECT_EQ(last_text("5 - 3"), "3");
}

TEST(Number, SplitsListsAndVersionsWhereCommasAndPointsCannotBelong) {
  EXPECT_EQ(last_text("1, 2, 3"), "3");
  EXPECT_EQ(last_text("1,2"), "2");
  EXPECT_EQ(last_text("12,3456"), "3456");
  EXPECT_EQ(last_text("1,234,56"), "56");
  EXPECT_EQ(last_text("1.2.3"), "3");
}

TEST(Number, SaysWhatIsWrongWithNumbersThatAreNone) {
  EXPECT_EQ(last_text("1/0"), "division by zero");
  EXPECT_EQ(last_text("1/1000000000000000000000"), "more than 18 digits in a denominator");
  EXPECT_EQ(last_text(std::string(1001, '7')), "more than 1000 digits");
  EXPECT_EQ(last_text("1" + std::string(900, '0')), "1e+900");
  EXPECT_EQ(last_text("1e1001"), "an exponent beyond 1000");
  EXPECT_EQ(last_text("1e99999999999999999999"), "an exponent beyond 1000");
}

TEST(NumberReward, ComparesExactlyAndNotAsFloats) {
  EXPECT_EQ(score("0.3", "0.30000000000000004"), 0);            // what a double makes of 0.1 + 0.2
  EXPECT_EQ(score("9007199254740993", "9007199254740992"), 0);  // equal as doubles
  EXPECT_EQ(score("9007199254740993", "9,007,199,254,740,993"), 1);
  EXPECT_EQ(score("0.75", "3/4"), 1);
  EXPECT_EQ(score("1/3", "2/6"), 1);
  EXPECT_EQ(score("1/3", "0.3333333333333333"), 0);
  EXPECT_EQ(score("100", "1e2"), 1);
  EXPECT_EQ(score("-2", "2"), 0);
}

TEST(NumberReward, TakesTheLastNumberOrTheOneAfterTheLastMarker) {
  EXPECT_EQ(score("7", "3 + 4 is 7"), 1);
  EXPECT_EQ(score("3", "3 + 4 is 7"), 0);
  const RewardOptions marked = {{"marker", "Answer:"}};
  EXPECT_EQ(judge(marked, "7", "Answer: 5, no, wait. Answer: 7 apples of 9").score, 1);
  EXPECT_EQ(judge(marked, "7", "Answer:\n\n7").score, 1);
  EXPECT_EQ(judge(marked, "7", "**Answer:** 7").score, 1);
  EXPECT_EQ(judge(marked, "7", "7").detail, "no 'Answer:' in the response");
  EXPECT_EQ(judge(marked, "7", "Answer: seven").detail, "no number after 'Answer:'");
  EXPECT_EQ(judge(marked, "7", "Answer: 8").detail, "is not 7");
  EXPECT_EQ(judge({{"marker", "\\boxed{"}}, "7", "so \\boxed{7}, not 8").score, 1);
  EXPECT_EQ(judge({{"marker", "<answer>"}}, "7", "<answer> 7 </answer> 8").score, 1);
  EXPECT_EQ(judge({{"marker", "<answer>"}}, "7", "<answer> 7").score, 0);
}

TEST(NumberReward, WantsNothingButTheNumberWhenStrict) {
  const RewardOptions strict = {{"marker", "Answer:"}, {"strict", "true"}};
  EXPECT_EQ(judge(strict, "7", "so: Answer: 7.\nThat is all").score, 1);
  EXPECT_EQ(judge(strict, "7", "Answer: 7 apples").score, 0);
  EXPECT_EQ(judge(strict, "7", "Answer:\n7").score, 0);
  EXPECT_EQ(judge(strict, "7", "Answer: 7 or 8").detail, "not exactly one number after 'Answer:'");
  EXPECT_EQ(judge({{"strict", "true"}}, "7", " 7 \n").score, 1);
  EXPECT_EQ(judge({{"strict", "true"}}, "7", "it is 7").score, 0);
}

TEST(NumberReward, AllowsATolerance) {
  const RewardOptions options = {{"tolerance", "0.001"}};
  EXPECT_EQ(judge(options, "1/3", "0.333").score, 1);  // |1/3 - 0.333| = 1/3000
  EXPECT_EQ(judge(options, "1/3", "0.332").score, 0);  // 4/3000
  EXPECT_EQ(judge(options, "2", "2.001").score, 1);    // the bound itself
  EXPECT_EQ(judge(options, "2", "2.0010000000000000001").score, 0);
  EXPECT_EQ(judge(options, "-0.0005", "0.0005").score, 1);
  EXPECT_EQ(judge(options, "0", "0.001").score, 1);
  EXPECT_EQ(judge(options, "5", "-5").score, 0);
}

TEST(NumberReward, TreatsPercentSignsAsAsked) {
  EXPECT_EQ(score("50", "50%"), 1);
  EXPECT_EQ(score("0.5", "50%"), 0);
  const RewardOptions fraction = {{"percent", "fraction"}};
  EXPECT_EQ(judge(fraction, "0.5", "50%").score, 1);
  EXPECT_EQ(judge(fraction, "50%", "1/2").score, 1);
  EXPECT_EQ(judge(fraction, "50", "50%").score, 0);
}

TEST(NumberReward, GivesEqualAnswersEqualTexts) {
  EXPECT_EQ(judge({}, "1", "0.50").answer, judge({}, "1", "2/4").answer);
  EXPECT_EQ(judge({}, "1", "1,000").answer, "1000");
}

TEST(NumberReward, CallsAGroundTruthThatIsNoNumberInvalid) {
  const RewardPart part = judge({}, "seven", "7");
  EXPECT_EQ(part.status, RewardStatus::kInvalidGold);
  EXPECT_EQ(part.detail, "the ground truth is 'seven'; expected a number");
  EXPECT_EQ(judge({}, "", "7").status, RewardStatus::kInvalidGold);
  EXPECT_EQ(judge({}, "1/0", "7").detail,
            "the ground truth is '1/0'; expected a number, not division by zero");
}

TEST(NumberReward, RefusesBadOptions) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  EXPECT_EQ(registry.create("number", {{"strict", "yes"}}).status().message(),
            "reward number: strict: is 'yes'; expected true or false");
  EXPECT_EQ(registry.create("number", {{"tolerance", "-1"}}).status().message(),
            "reward number: tolerance: is '-1'; expected a decimal number of at least 0");
  EXPECT_EQ(registry.create("number", {{"percent", "both"}}).status().message(),
            "reward number: percent: is 'both'; expected one of: ignore, fraction");
  EXPECT_EQ(registry.create("number", {{"markr", "x"}}).status().message(),
            "reward number: unknown option 'markr'; did you mean 'marker'?; known: marker, strict, "
            "tolerance, percent");
}

}  // namespace
}  // namespace gradus::rewards
