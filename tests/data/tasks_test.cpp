// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <regex>
#include <set>

#include "data/tasks/task.h"

namespace gradus::data {
namespace {

Row row_of(const std::string& task, const TaskOptions& options, uint64_t seed, uint64_t index) {
  auto row = make_row(task, options, seed, index);
  EXPECT_TRUE(row.ok()) << task << ": " << row.status().message();
  return row.ok() ? std::move(*row) : Row{};
}

std::string error_of(const std::string& task, const TaskOptions& options) {
  return Task::create(task, options).status().message();
}

std::vector<int64_t> numbers_in(const std::string& text) {
  const std::regex digits("[0-9]+");
  std::vector<int64_t> numbers;
  for (std::sregex_iterator i(text.begin(), text.end(), digits), end; i != end; ++i) {
    numbers.push_back(std::stoll(i->str()));
  }
  return numbers;
}

std::string spaced(const std::vector<int64_t>& numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : " ") + std::to_string(number);
  return text;
}

// Whether some order of operations on `values` comes to `target`: brute force over fractions as
// doubles, which small whole numbers make safe.
bool can_make(const std::vector<double>& values, double target) {
  if (values.size() == 1) return std::abs(values[0] - target) < 1e-9;
  for (size_t i = 0; i < values.size(); ++i) {
    for (size_t j = 0; j < values.size(); ++j) {
      if (i == j) continue;
      std::vector<double> rest;
      for (size_t k = 0; k < values.size(); ++k) {
        if (k != i && k != j) rest.push_back(values[k]);
      }
      rest.push_back(0);
      const double a = values[i], b = values[j];
      for (const double value : {a + b, a - b, a * b, b == 0 ? 1e18 : a / b}) {
        rest.back() = value;
        if (can_make(rest, target)) return true;
      }
    }
  }
  return false;
}

// The answer worked out from the question as a reader would, by other means than the generator's.
std::string answer_by_reading(const std::string& task, const std::string& compact) {
  const std::vector<int64_t> n = numbers_in(compact);
  if (task == "chain_sum" || task == "word_problem" || task == "addition" ||
      task == "multiplication") {
    // Left to right with * and / first: collect signed products.
    int64_t total = 0, product = n[0], sign = 1;
    size_t at = 0;
    for (size_t i = 1; i < n.size(); ++i) {
      at = compact.find_first_of("+-*/", at);
      const char op = compact[at++];
      if (op == '*') {
        product *= n[i];
      } else if (op == '/') {
        product /= n[i];
      } else {
        total += sign * product;
        product = n[i];
        sign = op == '-' ? -1 : 1;
      }
    }
    return std::to_string(total + sign * product);
  }
  if (task == "gcd") {
    int64_t divisor = std::min(n[0], n[1]);
    while (n[0] % divisor != 0 || n[1] % divisor != 0) --divisor;
    return std::to_string(divisor);
  }
  if (task == "base_conversion") {
    // "158 b2=": the digits of the answer times powers of the base, most significant first.
    std::string digits;
    int64_t power = 1, rest = n[0];
    while (power * n[1] <= rest) power *= n[1];
    for (; power > 0; power /= n[1]) {
      digits += "0123456789abcdef"[rest / power];
      rest %= power;
    }
    return digits;
  }
  if (task == "largest_number") return std::to_string(*std::max_element(n.begin(), n.end()));
  if (task == "number_sorting") {
    std::multiset<int64_t> sorted(n.begin(), n.end());
    return spaced({sorted.begin(), sorted.end()});
  }
  if (task == "digit_completion") {
    // "7 1 5 m10 n3="
    const int64_t asked = n.back(), modulus = n[n.size() - 2];
    const int64_t difference = ((n[1] - n[0]) % modulus + modulus) % modulus;
    std::vector<int64_t> next = {n[n.size() - 3]};
    for (int64_t i = 0; i < asked; ++i) next.push_back((next.back() + difference) % modulus);
    return spaced({next.begin() + 1, next.end()});
  }
  if (task == "letter_counting") {
    return std::to_string(std::count(compact.begin() + 2, compact.end(), compact[0]));
  }
  if (task == "spell_backward") {
    std::string word = compact.substr(4, compact.size() - 5);
    std::reverse(word.begin(), word.end());
    return word;
  }
  return "unknown task";
}

class EveryTask : public testing::TestWithParam<std::string> {};

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const TaskInfo& info : task_infos()) names.push_back(info.name);
  return names;
}

TEST_P(EveryTask, HasTheAnswerThatReadingTheQuestionGives) {
  for (uint64_t index = 0; index < 500; ++index) {
    const Row row = row_of(GetParam(), {{"style", "compact"}, {"solution", "answer"}}, 3, index);
    if (GetParam() == "countdown") {
      const auto truth = nlohmann::json::parse(row.ground_truth);
      std::vector<int64_t> shown = numbers_in(row.text);
      EXPECT_EQ(shown.back(), truth["target"].get<int64_t>());
      shown.pop_back();
      EXPECT_EQ(shown, truth["numbers"].get<std::vector<int64_t>>());
      EXPECT_TRUE(
          can_make(truth["numbers"].get<std::vector<double>>(), truth["target"].get<double>()))
          << row.text;
      continue;
    }
    EXPECT_EQ(row.ground_truth, answer_by_reading(GetParam(), row.text)) << row.text;
    EXPECT_EQ(row.response, row.ground_truth) << row.text;
  }
}

TEST_P(EveryTask, IsAFunctionOfSeedAndIndexAlone) {
  const auto task = Task::create(GetParam(), {{"examples", "2"}});
  ASSERT_TRUE(task.ok()) << task.status().message();
  const auto copy = *task;
  std::vector<Row> forward, backward;
  for (uint64_t i = 0; i < 20; ++i) forward.push_back(*task->row(5, i));
  for (uint64_t i = 20; i-- > 0;) backward.push_back(*copy.row(5, i));
  std::reverse(backward.begin(), backward.end());
  EXPECT_EQ(forward, backward);
  std::set<std::string> prompts;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    prompts.insert(task->row(seed, 0)->messages.back().content);
  }
  EXPECT_GT(prompts.size(), 10u) << "the seed hardly changes the row";
}

TEST_P(EveryTask, AsksTheSameInBothStyles) {
  for (uint64_t index = 0; index < 50; ++index) {
    const Row natural = row_of(GetParam(), {}, 9, index);
    const Row compact = row_of(GetParam(), {{"style", "compact"}}, 9, index);
    EXPECT_EQ(natural.ground_truth, compact.ground_truth);
    EXPECT_TRUE(natural.text.empty() && natural.messages.size() == 1);
    EXPECT_TRUE(compact.messages.empty() && compact.text.ends_with('='));
    const std::string& question = natural.messages[0].content;
    EXPECT_NE(question.find("Finish with a line of the form 'Answer: "), std::string::npos);
  }
}

TEST_P(EveryTask, LeavesAConstantAnswerBelowAQuarter) {
  constexpr int kRows = 2000;
  for (const char* split : {"all", "train", "heldout"}) {
    std::map<std::string, int> counts;
    for (uint64_t i = 0; i < kRows; ++i) {
      ++counts[row_of(GetParam(), {{"split", split}}, 17, i).ground_truth];
    }
    const auto best =
        std::max_element(counts.begin(), counts.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    const double share = static_cast<double>(best->second) / kRows;
    std::cout << GetParam() << " (" << split << "): best constant answer '" << best->first
              << "' is right in " << 100 * share << " %\n";
    EXPECT_LE(share, 0.25) << "always answering '" << best->first << "'";
  }
}

TEST_P(EveryTask, KeepsHeldOutProblemsOutOfTraining) {
  std::set<std::string> train, held_out;
  for (uint64_t i = 0; i < 1000; ++i) {
    train.insert(row_of(GetParam(), {{"style", "compact"}, {"split", "train"}}, 1, i).text);
    held_out.insert(row_of(GetParam(), {{"style", "compact"}, {"split", "heldout"}}, 2, i).text);
  }
  for (const std::string& text : held_out) EXPECT_FALSE(train.contains(text)) << text;
}

TEST_P(EveryTask, ShowsOtherProblemsAsExamples) {
  for (const char* split : {"all", "heldout"}) {
    for (uint64_t index = 0; index < 50; ++index) {
      const Row row = row_of(GetParam(), {{"examples", "2"}, {"split", split}}, 4, index);
      ASSERT_EQ(row.messages.size(), 5u);
      std::set<std::string> questions;
      for (size_t i = 0; i < 5; ++i) {
        EXPECT_EQ(row.messages[i].role, i % 2 == 0 ? "user" : "assistant");
        if (i % 2 == 0) questions.insert(row.messages[i].content);
        if (i % 2 == 1) {
          EXPECT_TRUE(row.messages[i].content.starts_with("Answer: "));
        }
      }
      EXPECT_EQ(questions.size(), 3u);
      const Row alone = row_of(GetParam(), {{"split", split}}, 4, index);
      EXPECT_EQ(row.messages.back(), alone.messages.back());
    }
  }
}

TEST_P(EveryTask, WorksAtTheEndsOfItsDials) {
  for (const TaskInfo& info : task_infos()) {
    if (info.name != GetParam()) continue;
    for (const TaskOption& option : info.options) {
      const size_t dots = option.values.find("..");
      if (dots == std::string::npos) continue;
      for (const std::string& value :
           {option.values.substr(0, dots), option.values.substr(dots + 2)}) {
        const auto task = Task::create(info.name, {{option.name, value}});
        if (!task.ok()) {
          // Only a contradiction with another dial may be refused.
          EXPECT_EQ(task.status().message().find("expected a whole number"), std::string::npos);
          continue;
        }
        for (uint64_t i = 0; i < 5; ++i) {
          const auto row = task->row(1, i);
          EXPECT_TRUE(row.ok()) << option.name << " " << value << ": " << row.status().message();
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Builtin, EveryTask, testing::ValuesIn(task_names()),
                         [](const auto& parameter) { return parameter.param; });

TEST(Task, GivesTheSameRowsOnEveryHost) {
  // Seed 1, row 0, default dials. A change here breaks the resumption of every run on that task.
  const std::map<std::string, std::pair<std::string, std::string>> golden = {
      {"addition", {"16+61=", "6+1=7;1+6+0=7;77"}},
      {"base_conversion",
       {"158 b2=", "158%2=0;79%2=1;39%2=1;19%2=1;9%2=1;4%2=0;2%2=0;1%2=1;10011110"}},
      {"chain_sum", {"9-3+6=", "9-3=6;6+6=12"}},
      {"countdown", {"13 20 9>97=", "9*13=117;117-20=97;9*13-20"}},
      {"digit_completion", {"7 1 5 m10 n3=", "+4;9 3 7"}},
      {"gcd", {"gcd 110 33=", "110%33=11;33%11=0;11"}},
      {"largest_number", {"max 11 1 2=", "11 1>11;11 2>11;11"}},
      {"letter_counting", {"e:spinach rocket circle=", "0+1+1=2"}},
      {"multiplication", {"6*7=", "6*7=42"}},
      {"number_sorting",
       {"up 93 62 99 89 44=", "44:93 62 99 89;62:93 99 89;89:93 99;93:99;44 62 89 93 99"}},
      {"spell_backward", {"rev satellite=", "s a t e l l i t e;etilletas"}},
      {"word_problem", {"6*5+6=", "6*5=30;30+6=36"}},
  };
  for (const std::string& name : task_names()) {
    ASSERT_TRUE(golden.contains(name)) << name;
    const Row row = row_of(name, {{"style", "compact"}}, 1, 0);
    EXPECT_EQ(row.text, golden.at(name).first);
    EXPECT_EQ(row.response, golden.at(name).second);
  }
}

TEST(Task, MakesWholeRowsInVerlsFields) {
  const Row row = row_of("chain_sum", {{"split", "train"}, {"terms", "2"}}, 1, 6);
  const auto numbers = numbers_in(row.messages[0].content);
  EXPECT_EQ(row.messages[0].role, "user");
  EXPECT_EQ(row.data_source, "chain_sum");
  EXPECT_EQ(row.ability, "math");
  EXPECT_EQ(row.reward_style, "rule");
  EXPECT_EQ(row.response.substr(row.response.find('\n')), "\nAnswer: " + row.ground_truth);
  EXPECT_EQ(row.extra_info,
            R"({"index":6,"seed":1,"split":"train","terms":2,"digits":1,"allow_negative":0})");
}

TEST(Task, TurnsItsDials) {
  for (uint64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(
        numbers_in(row_of("chain_sum", {{"terms", "7"}, {"style", "compact"}}, 1, i).text).size(),
        7u);
    const Row sum = row_of("addition", {{"digits", "5"}, {"style", "compact"}}, 1, i);
    for (const int64_t number : numbers_in(sum.text))
      EXPECT_TRUE(number >= 10000 && number < 100000);
    const Row sorted = row_of("number_sorting", {{"descending", "1"}}, 1, i);
    const auto numbers = numbers_in(sorted.ground_truth);
    EXPECT_TRUE(std::is_sorted(numbers.rbegin(), numbers.rend()));
    const auto target = nlohmann::json::parse(
        row_of("countdown", {{"numbers", "4"}, {"min_target", "10"}, {"max_target", "25"}}, 1, i)
            .ground_truth);
    EXPECT_EQ(target["numbers"].size(), 4u);
    EXPECT_TRUE(target["target"] >= 10 && target["target"] <= 25);
  }
}

TEST(Task, RefusesWhatItDoesNotKnow) {
  EXPECT_TRUE(
      error_of("chainsum", {})
          .starts_with("unknown task 'chainsum'; did you mean 'chain_sum'?; known: addition, "));
  EXPECT_EQ(
      error_of("gcd", {{"max_gdc", "3"}}),
      "task gcd: unknown option 'max_gdc'; did you mean 'max_gcd'?; known: max_gcd, max_factor, "
      "style, solution, examples, split");
  EXPECT_EQ(error_of("addition", {{"digits", "16"}}),
            "task addition: digits: is '16'; expected a whole number in [1, 15]");
  EXPECT_EQ(error_of("addition", {{"digits", "two"}}),
            "task addition: digits: is 'two'; expected a whole number in [1, 15]");
  EXPECT_EQ(error_of("addition", {{"style", "short"}}),
            "task addition: style: is 'short'; expected one of: natural, compact");
  EXPECT_EQ(error_of("addition", {{"style", "compact"}, {"examples", "1"}}),
            "task addition: examples: is 1; only style natural has solved turns");
  EXPECT_EQ(error_of("number_sorting", {{"count", "8"}, {"digits", "1"}}),
            "task number_sorting: count: is 8; with digits 1 at most 5 is possible");
  EXPECT_EQ(error_of("countdown", {{"min_target", "30"}, {"max_target", "20"}}),
            "task countdown: min_target: is 30; expected at most max_target, 20");
}

TEST(Task, SaysWhenTheDialsLeaveNoProblem) {
  // Two numbers up to 5 never make a target above 90.
  EXPECT_EQ(
      make_row("countdown", {{"numbers", "2"}, {"max_number", "5"}, {"min_target", "90"}}, 0, 5)
          .status()
          .message(),
      "task countdown: no problem found in 10000 tries (seed 0, index 5); the dials leave too few "
      "problems for this split and number of examples: widen them");
}

// A third of the rows show their steps, the others the answer alone; which is a function of the
// row.
TEST(MixedSolutions, ShowStepsInAThirdOfTheRows) {
  const auto response = [](const char* solution, uint64_t index) {
    const auto row =
        make_row("number_sorting", {{"style", "compact"}, {"solution", solution}}, 3, index);
    GRADUS_CHECK(row.ok(), row.status().message());
    return row->response;
  };
  int num_steps = 0;
  for (uint64_t i = 0; i < 300; ++i) {
    const std::string mixed = response("mixed", i);
    const bool has_steps = mixed.find(';') != std::string::npos;
    EXPECT_EQ(mixed, response(has_steps ? "steps" : "answer", i)) << "row " << i;
    num_steps += has_steps ? 1 : 0;
  }
  EXPECT_NEAR(num_steps, 100, 25) << "three standard deviations of 300 draws at a third";
}

}  // namespace
}  // namespace gradus::data
