// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/math_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "rewards/reward.h"
#include "tests/support/files.h"
#include "tests/support/json_rows.h"

namespace gradus::rewards::math {
namespace {

using data::RewardStatus;

constexpr MathOptions kStrict{};
constexpr MathOptions kCompat{.mode = MathMode::kCompat};

struct Pair {
  std::string kind, gold, answer;
  int strict = 0, compat = 0;
};

// Pairs of our own writing; `compat` is what math-verify 0.9.0 says
// (tools/golden/make_math_golden.py).
const std::vector<Pair>& pairs() {
  static const std::vector<Pair> kPairs = [] {
    std::vector<Pair> read;
    for (const auto& row : test::json_rows(test::read_file("tests/golden/math/pairs.jsonl"))) {
      read.push_back({row["kind"], row["gold"], row["answer"], row["strict"], row["compat"]});
    }
    return read;
  }();
  return kPairs;
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

MathVerdict strict(const std::string& gold, const std::string& answer) {
  return check_math(gold, answer, kStrict);
}

TEST(MathStrict, ShowsHowItReadBothAndWhatDecided) {
  const MathVerdict verdict = strict("$(x+2)(x-5)$", "so \\boxed{x^2-3x-10}.");
  EXPECT_EQ(verdict.status, RewardStatus::kOk);
  EXPECT_EQ(verdict.score, 1);
  EXPECT_EQ(verdict.rule, "polynomial identity");
  EXPECT_EQ(verdict.gold_parsed, "(x + 2)*(x + -5)");
  EXPECT_EQ(verdict.answer_parsed, "x^2 + -1*3*x + -10");
}

TEST(MathStrict, AcceptsNoneOfTheAdversarialPairs) {
  size_t num_attacks = 0;
  for (const Pair& pair : pairs()) {
    if (!pair.kind.starts_with("attack")) continue;
    ++num_attacks;
    const MathVerdict verdict = strict(pair.gold, pair.answer);
    EXPECT_FALSE(verdict.status == RewardStatus::kOk && verdict.score == 1)
        << pair.kind << ": " << pair.gold << " <- " << pair.answer << " by " << verdict.rule;
  }
  EXPECT_GE(num_attacks, 300u);
}

// Found by gradus reward probe: a bare \\frac was taken for the answer whatever stood beside it.
TEST(MathStrict, TakesNoFormulaThatIsOneOfSeveralAnswers) {
  for (const char* answer :
       {"Answer: -1.25 or \\frac{1}{2} or -2.25", "The answer is 3 or \\frac{1}{2}.",
        "The answer is \\frac{1}{2} or 3.", "The answer is 3 or $\\frac{1}{2}$.",
        "The answer is $3$ or $\\frac{1}{2}$.", "The answer is 3 or \\(\\frac{1}{2}\\)."}) {
    EXPECT_EQ(strict("\\frac{1}{2}", answer).score, 0) << answer;
  }
  EXPECT_EQ(strict("\\frac{1}{2}", "Either way or not, the answer is \\frac{1}{2}.").score, 1);
}

TEST(MathStrict, AcceptsTheTruePairsAndRefusesTheOthersOfTheTable) {
  for (const Pair& pair : pairs()) {
    if (pair.kind.starts_with("attack")) continue;
    const MathVerdict verdict = strict(pair.gold, pair.answer);
    EXPECT_EQ(verdict.status == RewardStatus::kOk ? verdict.score : 0, pair.strict)
        << pair.kind << ": " << pair.gold << " <- " << pair.answer << " by " << verdict.rule;
  }
}

TEST(MathStrict, LeavesUndecidedWhatItCannotShow) {
  // Nobody knows a proof; both sides are astronomically large.
  const MathVerdict verdict = strict("$9^{9^{9^{9}}}$", "$9^{9^{9^{9}}}+1$");
  EXPECT_EQ(verdict.status, RewardStatus::kUndecided);
  EXPECT_EQ(verdict.score, 0);
}

TEST(MathStrict, NamesAGroundTruthThatCannotBeRead) {
  const MathVerdict verdict = strict("", "\\boxed{1}");
  EXPECT_EQ(verdict.status, RewardStatus::kInvalidGold);
  EXPECT_EQ(verdict.rule,
            "the ground truth is ''; expected an answer that can be read, a number or a LaTeX "
            "expression, alone or in \\boxed{}");
  EXPECT_EQ(check_math("\\sqrt{2}", "1", kCompat).rule,
            "the ground truth is '\\sqrt{2}'; expected an answer that can be read, LaTeX between $ "
            "signs, in \\boxed{}, or a plain number");
}

TEST(MathStrict, SaysWhyThereIsNoAnswer) {
  EXPECT_EQ(strict("7", "<think>\\boxed{7}</think>").rule, "nothing after </think>");
  EXPECT_EQ(strict("7", "<think>\\boxed{7}").rule, "<think> does not end");
  EXPECT_EQ(strict("7", "\\boxed{7").rule, "a box without an end");
  EXPECT_EQ(strict("7", "no idea").rule, "no answer in the text");
  EXPECT_EQ(strict("$15\\text{ cm}$", "$15\\text{ m}$").rule, "units differ");
  EXPECT_EQ(strict("$55$", "$\\sum_{k=1}^{10} k$").rule, "unevaluated");
}

TEST(MathCompat, HasTheVerdictsOfMathVerify) {
  size_t num_agreeing = 0;
  std::string differing;
  for (const Pair& pair : pairs()) {
    const MathVerdict verdict = check_math(pair.gold, pair.answer, kCompat);
    const bool is_accepted = verdict.status == RewardStatus::kOk && verdict.score == 1;
    num_agreeing += is_accepted == (pair.compat == 1) ? 1 : 0;
    if (is_accepted != (pair.compat == 1)) {
      differing +=
          pair.kind + ": " + pair.gold + " <- " + pair.answer + " by " + verdict.rule + "\n";
    }
  }
  EXPECT_GE(num_agreeing * 100, pairs().size() * 98)
      << num_agreeing << " of " << pairs().size() << "; these differ:\n"
      << differing;
}

TEST(MathCompat, AgreesWithTheTestsOfMathVerifyItself) {
  if (!std::filesystem::exists(".deps/math_verify/rows.jsonl")) {
    GTEST_SKIP() << "tools/math_verify_rows.py > .deps/math_verify/rows.jsonl fetches the rows";
  }
  size_t num_rows = 0, num_agreeing = 0;
  std::string differing;
  for (const auto& row : test::json_rows(test::read_file(".deps/math_verify/rows.jsonl"))) {
    const std::string targets = row["targets"];
    const MathOptions options{.mode = MathMode::kCompat,
                              .targets = targets == "latex"        ? MathTargets::kLatex
                                         : targets == "expression" ? MathTargets::kExpression
                                                                   : MathTargets::kBoth,
                              .decimals = row["decimals"],
                              .names_matter = row["names_matter"],
                              .compares_relations_with_sets = row["compares_relations_with_sets"]};
    const MathVerdict verdict =
        check_math(row["gold"].get<std::string>(), row["answer"].get<std::string>(), options);
    const bool is_accepted = verdict.status == RewardStatus::kOk && verdict.score == 1;
    const bool agrees = is_accepted == (row["expected"] == 1);
    ++num_rows;
    num_agreeing += agrees ? 1 : 0;
    if (!agrees)
      differing += row["test"].get<std::string>() + ": " +
                   row["gold"].get<std::string>().substr(0, 80) + "\n";
  }
  RecordProperty("agreeing", fmt::format("{} of {}", num_agreeing, num_rows));
  EXPECT_GE(num_rows, 260u);
  EXPECT_GE(num_agreeing * 100, num_rows * 98) << num_agreeing << " of " << num_rows << ":\n"
                                               << differing;
}

// Rewriting both sides alike keeps a verdict of strict mode.
TEST(MathStrict, VerdictsDoNotDependOnDelimitersOrBoxes) {
  for (const Pair& pair : pairs()) {
    const bool is_plain = pair.gold.starts_with('$') && pair.gold.ends_with('$') &&
                          pair.answer.starts_with('$') && pair.answer.ends_with('$') &&
                          std::count(pair.answer.begin(), pair.answer.end(), '$') == 2 &&
                          pair.answer.size() < 200;
    if (!is_plain) continue;
    const std::string gold = pair.gold.substr(1, pair.gold.size() - 2);
    const std::string answer = pair.answer.substr(1, pair.answer.size() - 2);
    const MathVerdict first = strict(pair.gold, pair.answer);
    for (const std::string& response :
         {"\\boxed{" + answer + "}", "The answer is \\(" + answer + "\\).",
          "Hence \\[" + answer + "\\]", "<think>x</think> $" + answer + "$"}) {
      const MathVerdict second = strict("\\boxed{" + gold + "}", response);
      EXPECT_EQ(first.score, second.score)
          << pair.gold << " <- " << response << ": " << first.rule << ", " << second.rule;
    }
  }
}

TEST(MathStrict, ABareGroundTruthIsReadAsOneInABox) {
  EXPECT_EQ(strict("\\sqrt{2}", "\\boxed{\\sqrt2}").score, 1);
  EXPECT_EQ(strict("x^2+1", "\\boxed{1+x^2}").score, 1);
  EXPECT_EQ(strict("\\frac{1}{2}x+3", "\\boxed{\\frac12}").score, 0);
  EXPECT_EQ(strict("Evelyn", "\\boxed{\\text{Evelyn}}").score, 1);
  EXPECT_EQ(strict("The answer is 5 because of that.", "\\boxed{5}").score, 1);
}

TEST(MathLimits, HostileTextTakesLinearTime) {
  constexpr size_t kBytes = 1 << 20;
  for (const std::string_view unit : {"\\[",
                                      "\\(",
                                      "$",
                                      "$$",
                                      "\\boxed{",
                                      "\\boxed{}",
                                      "answer ",
                                      "answer: ",
                                      "final answer is ",
                                      "1+",
                                      "1 ",
                                      "7",
                                      "-",
                                      "{",
                                      "}",
                                      "(",
                                      "\\frac",
                                      "\\text{",
                                      "\\sqrt",
                                      "|",
                                      " [",
                                      "=",
                                      "9^",
                                      "\\boxed{1}",
                                      "x and ",
                                      "I hope ",
                                      "\\left(",
                                      "\\begin{pmatrix}",
                                      "1,234,",
                                      "<think>",
                                      "</think>",
                                      "answer =",
                                      "\xe2\x88\x92",
                                      "\\boxed{$\\[",
                                      "1:",
                                      "\\pm",
                                      "x_{",
                                      "!"}) {
    std::string text;
    while (text.size() < kBytes) text += unit;
    for (const MathOptions& options : {kStrict, kCompat}) {
      const auto start = std::chrono::steady_clock::now();
      (void)check_math("$7$", text, options);
      const double one = milliseconds_since(start);
      // 20 ms on an idle machine; a test shares its processor.
      EXPECT_LT(one, 200) << "unit '" << unit << "', mode " << static_cast<int>(options.mode);
    }
  }
}

TEST(MathLimits, HostileFormulasEndSoon) {
  const auto nested = [](const std::string& open, const std::string& core, const std::string& close,
                         int depth) {
    std::string before, after;
    for (int i = 0; i < depth; ++i) {
      before += open;
      after += close;
    }
    return before + core + after;
  };
  std::string many_terms = "x", roots = "\\sqrt{2}", product = "(x+y+z+1)";
  for (int i = 0; i < 400; ++i) many_terms += "+x^{" + std::to_string(i) + "}";
  for (int i = 3; i < 60; ++i) roots += "+\\sqrt{" + std::to_string(i) + "}";
  for (int i = 0; i < 100; ++i) product += "(x+y+z+" + std::to_string(i) + ")";
  const std::vector<std::string> formulas = {
      "9^{9^{9^{9}}}",
      "2^{1000000}",
      "(x+y+z+w)^{200}",
      "x^{1000000}",
      "1000000!",
      "\\binom{2000000}{1000000}",
      "10^{10^{10}}",
      "e^{e^{e^{e^{e}}}}",
      "\\sin(10^{100})",
      "\\sin(10^{10000})",
      "\\tan\\tan\\tan\\tan 1",
      "1.0" + std::string(4000, '0') + "1",
      std::string(4000, '9'),
      many_terms,
      roots,
      product,
      nested("\\sqrt{1+", "2", "}", 60),
      nested("\\frac{1}{1+", "x", "}", 60),
      nested("\\sin(", "x", ")", 60),
      nested("(", "1", ")", 400),
      nested("{", "1", "}", 400),
      nested("\\sqrt[3]{2+", "2", "}", 8),
      "\\sum_{k=1}^{1000000000} k",
      "\\sum_{k=1}^{1000}\\frac{1}{k^{1000}}",
      "\\prod_{k=1}^{1000} (x+k)",
      "\\int_0^1 \\sin(\\frac{1}{x}) dx",
      "\\lim_{x\\to\\infty} x^{x^{x}}",
      "\\gamma^{\\pi^{e}}",
      "e^{\\pi\\sqrt{163}}",
      "\\ln(\\ln(\\ln(\\ln 3)))",
      "\\cos\\frac{\\pi}{257}+\\cos\\frac{2\\pi}{257}",
      "\\sqrt{2}^{\\sqrt{2}^{\\sqrt{2}}}",
      "0^{0^{0}}",
      "(-8)^{1/3}",
      "\\arcsin(\\sin 100)+\\arccos(\\cos 77)",
      "\\tan\\frac{3\\pi}{11}+4\\sin\\frac{2\\pi}{11}",
      "\\sqrt{11}",
      "\\frac{\\ln 2}{\\ln 3}-\\frac{\\ln 4}{\\ln 9}",
      "\\{" + std::string(1000, '1') + nested("", "", ",1", 500) + "\\}",
  };
  for (const std::string& gold : formulas) {
    for (const std::string& answer : {gold, "(" + gold + ")+0", gold + "+x-x", std::string("1")}) {
      for (const MathOptions& options : {kStrict, kCompat}) {
        const auto start = std::chrono::steady_clock::now();
        (void)check_math("$" + gold + "$", "$" + answer + "$", options);
        // 100 ms on an idle machine; a test shares its processor.
        EXPECT_LT(milliseconds_since(start), 1000)
            << gold.substr(0, 80) << " <- " << answer.substr(0, 80);
      }
    }
  }
}

// Pieces of formulas put into the pairs at random places: nothing may crash or take long.
TEST(MathLimits, BrokenFormulasEndSoon) {
  const std::vector<std::string> pieces = {"^",
                                           "{",
                                           "}",
                                           "\\frac",
                                           "\\sqrt",
                                           "(",
                                           ")",
                                           "[",
                                           "|",
                                           "_",
                                           "!",
                                           "-",
                                           "/0",
                                           "9",
                                           ".",
                                           ",",
                                           ";",
                                           "=",
                                           "<",
                                           "\\pm",
                                           "dx",
                                           "e",
                                           "\\int_0^1",
                                           "\\sum_{k=1}^{9}",
                                           "\\begin{pmatrix}",
                                           "\\end{pmatrix}",
                                           "&",
                                           "\\\\",
                                           "\\text{",
                                           "\\%",
                                           "^{-1}",
                                           "^{99}",
                                           "\\infty",
                                           "\\cup",
                                           "\\{",
                                           "\\}",
                                           "\\gcd(",
                                           "\\lfloor",
                                           "\\log_",
                                           "\\Gamma(",
                                           "\\mod",
                                           "0^"};
  uint64_t state = 11;
  const auto draw = [&](size_t count) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<size_t>(state >> 33) % count;
  };
  const auto broken = [&](std::string text) {
    for (size_t i = draw(4) + 1; i > 0; --i) {
      if (draw(3) == 0 && !text.empty()) text.erase(draw(text.size()), 1);
      text.insert(draw(text.size() + 1), pieces[draw(pieces.size())]);
    }
    return text;
  };
  for (int i = 0; i < 3000; ++i) {
    const Pair& pair = pairs()[draw(pairs().size())];
    const std::string gold = draw(2) == 0 ? pair.gold : broken(pair.gold);
    const std::string answer = broken(draw(3) == 0 ? pair.gold : pair.answer);
    for (const MathOptions& options : {kStrict, kCompat}) {
      const auto start = std::chrono::steady_clock::now();
      (void)check_math(gold, answer, options);
      EXPECT_LT(milliseconds_since(start), 1000) << gold << " <- " << answer;
    }
  }
}

TEST(MathReward, ScoresFromARunsOptions) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  const auto judge = [&](const RewardOptions& options, const std::string& gold,
                         const std::string& response) {
    const auto reward = registry.create("math", options);
    EXPECT_TRUE(reward.ok()) << reward.status().message();
    data::Prompt prompt;
    prompt.answer = gold;
    data::Trajectory trajectory;
    trajectory.text = response;
    const Group group{&prompt, std::span(&trajectory, 1)};
    return (*reward)->score_batch(std::span(&group, 1))[0];
  };
  EXPECT_EQ(judge({}, "\\frac{1}{2}", "\\boxed{0.5}").score, 1);
  EXPECT_EQ(judge({}, "\\frac{1}{2}", "\\boxed{0.5}").answer, "1/2");
  EXPECT_EQ(judge({}, "5", "\\boxed{5t}").score, 0);
  EXPECT_EQ(judge({{"mode", "compat"}}, "5", "\\boxed{5t}").score, 1);
  EXPECT_EQ(judge({}, "", "\\boxed{5}").status, RewardStatus::kInvalidGold);
  EXPECT_EQ(judge({}, "9^{9^{9^9}}", "\\boxed{9^{9^{9^9}}+1}").status, RewardStatus::kUndecided);
  const auto wrong = registry.create("math", {{"mode", "lenient"}});
  EXPECT_EQ(wrong.status().message(),
            "reward math: mode: is 'lenient'; expected one of: strict, compat");
}

}  // namespace
}  // namespace gradus::rewards::math
