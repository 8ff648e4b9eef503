// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rewards/code/code_tests.h"
#include "rewards/code/compare_output.h"
#include "rewards/code/extract_code.h"
#include "rewards/reward.h"

namespace gradus::rewards {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string python(const std::string& code) { return "So:\n```python\n" + code + "\n```\n"; }
std::string cpp(const std::string& code) { return "So:\n```cpp\n" + code + "\n```\n"; }

std::unique_ptr<Reward> make_reward(const RewardOptions& options) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  auto reward = registry.create("code", options);
  EXPECT_TRUE(reward.ok()) << reward.status().message();
  return std::move(*reward);
}

const Reward& python_reward() {
  static const std::unique_ptr<Reward> reward = make_reward({{"cpu_s", "0.5"}, {"wall_s", "1"}});
  return *reward;
}

std::vector<RewardPart> score_all(const Reward& reward, const std::string& tests,
                                  const std::vector<std::string>& responses) {
  data::Prompt prompt;
  prompt.answer = tests;
  prompt.metadata["cases"] = tests;
  std::vector<data::Trajectory> trajectories(responses.size());
  for (size_t i = 0; i < responses.size(); ++i) trajectories[i].text = responses[i];
  const Group group{&prompt, trajectories};
  return reward.score_batch(std::span(&group, 1));
}

RewardPart score(const Reward& reward, const std::string& tests, const std::string& response) {
  return score_all(reward, tests, {response}).at(0);
}

constexpr const char* kDouble =
    R"([{"stdin": "2\n", "stdout": "4\n"}, {"stdin": "5", "stdout": "10"}])";
constexpr const char* kAdd =
    R"({"function": "add", "tests": [{"arguments": [1, 2], "returns": 3},
                                     {"arguments": [5, -5], "returns": 0}]})";

TEST(CodeReward, ScoresAProgramByItsOutput) {
  const Reward& reward = python_reward();
  EXPECT_EQ(score(reward, kDouble, python("print(2 * int(input()))")).score, 1);
  EXPECT_EQ(score(reward, kDouble, python("print(2 * int(input()), '')")).score, 1);
  const RewardPart wrong = score(reward, kDouble, python("print(2 + int(input()))"));
  EXPECT_EQ(wrong.score, 0);
  EXPECT_EQ(wrong.status, RewardStatus::kOk);
  EXPECT_EQ(wrong.detail, "test 2: wrong answer: '7'; expected '10'");
}

TEST(CodeReward, ScoresAProgramByAssertStatements) {
  const Reward& reward = python_reward();
  const std::string tests =
      R"j({"test_list": ["assert shared((3, 4, 5), (5, 4)) == (4, 5)", "assert shared([], ()) == ()"]})j";
  EXPECT_EQ(
      score(reward, tests, python("def shared(a, b):\n  return tuple(sorted(set(a) & set(b)))"))
          .score,
      1);
  EXPECT_EQ(score(reward, tests, python("def shared(a, b):\n  return a[:2]")).detail,
            "test 1: wrong answer: '(3, 4)'; expected '(4, 5)'");
  // What Python's own assert would let pass.
  for (const char* code :
       {"class Any:\n  def __eq__(self, o): return True\ndef shared(a, b): return Any()",
        "import sys\ndef shared(a, b): sys.exit(0)"}) {
    const RewardPart part = score(reward, tests, python(code));
    EXPECT_EQ(part.status, RewardStatus::kOk);
    EXPECT_EQ(part.score, 0) << code;
  }
}

TEST(CodeReward, SaysWhatAProgramDidWrongAndScoresItZero) {
  const Reward& reward = python_reward();
  const auto detail = [&](const std::string& response) {
    const RewardPart part = score(reward, kDouble, response);
    EXPECT_EQ(part.status, RewardStatus::kOk) << part.detail;
    EXPECT_EQ(part.score, 0);
    return part.detail;
  };
  EXPECT_EQ(detail("print(2 * int(input()))"), "no closed block of Python in the response");
  EXPECT_EQ(detail("```python\nprint(2 * int(input()))"),
            "no closed block of Python in the response");
  EXPECT_EQ(detail(python("1/0")),
            "test 1: runtime error: exit code 1: ZeroDivisionError: division by zero");
  EXPECT_EQ(detail(python("print(2 * int(input()))\nexit(3)")),
            "test 1: runtime error: exit code 3");
  EXPECT_EQ(detail(python("while True: pass")), "test 1: timeout: over its limit of a core's time");
  EXPECT_EQ(detail(python("import time; time.sleep(9)")),
            "test 1: timeout: waited until its time was over");
  EXPECT_EQ(detail(python("while True: print('4')")), "test 1: output limit");
  EXPECT_EQ(detail(python("import os; os.kill(os.getpid(), 11)")),
            "test 1: runtime error: ended by signal 11 (Segmentation fault)");
  EXPECT_THAT(detail(python("b = bytearray(1 << 33)")), HasSubstr("MemoryError"));
  EXPECT_THAT(detail(python("print(")), HasSubstr("SyntaxError"));
}

TEST(CodeReward, ScoresAFunctionByItsValue) {
  const Reward& reward = python_reward();
  EXPECT_EQ(score(reward, kAdd, python("def add(a, b):\n  print('3')\n  return a + b")).score, 1);
  EXPECT_EQ(score(reward, kAdd, python("def add(a, b): return 3")).detail,
            "test 2: wrong answer: '3'; expected '0'");
  EXPECT_EQ(score(reward, kAdd, python("def add(a, b): print(a + b)")).detail,
            "test 1: wrong answer: 'null'; expected '3'");
  EXPECT_THAT(score(reward, kAdd, python("def sub(a, b): return a")).detail,
              HasSubstr("AttributeError"));
}

TEST(CodeReward, ScoresCpp) {
  const auto reward = make_reward({{"language", "cpp"}, {"cpu_s", "0.5"}});
  const auto parts = score_all(
      *reward, kDouble,
      {cpp("#include <iostream>\nint main() { int n; std::cin >> n; std::cout << 2 * n; }"),
       cpp("#include <iostream>\nint main() { std::cout << 4; }"), cpp("int main() { return x; }"),
       cpp("int main() { for (volatile int i = 0;; ++i) {} }"), python("print(2 * int(input()))")});
  EXPECT_EQ(parts[0].score, 1) << parts[0].detail;
  EXPECT_EQ(parts[1].detail, "test 2: wrong answer: '4'; expected '10'");
  EXPECT_THAT(parts[2].detail,
              testing::MatchesRegex("compile error: .*x.* was not declared in this scope"));
  EXPECT_EQ(parts[3].detail, "test 1: timeout: over its limit of a core's time");
  EXPECT_EQ(parts[4].detail, "no closed block of C++ in the response");
  const auto calls =
      score_all(*reward, kAdd,
                {cpp("long add(long a, long b) { return a + b; }\nint main() { return 1; }"),
                 cpp("struct Solution { int add(int a, int b) const { return a + b; } };"),
                 cpp("#include <cstdlib>\nint add(int a, int b) { exit(0); }"),
                 cpp("int add(int a) { return a; }")});
  EXPECT_EQ(calls[0].score, 1) << calls[0].detail;
  EXPECT_EQ(calls[1].score, 1) << calls[1].detail;
  EXPECT_EQ(calls[2].detail, "test 1: wrong answer: the function did not return");
  EXPECT_THAT(calls[3].detail, StartsWith("test 1: runtime error: exit code 3: arguments do not"));
}

// Every trick that has earned a reward elsewhere (section titles are those of docs/rewards.md).
TEST(CodeReward, IsNotTalkedIntoAFullScore) {
  const Reward& reward = python_reward();
  for (const char* program : {
           "import sys; sys.exit(0)",
           "import os; os._exit(0)",
           "raise SystemExit(0)",
           "quit()",
           "def add(a, b): import os; os._exit(0)",
           "class Always(int):\n  def __eq__(self, o): return True\n"
           "  def __hash__(self): return 0\ndef add(a, b): return Always(7)",
           "class Always:\n  def __eq__(self, o): return True\ndef add(a, b): return Always()",
           "import builtins\nbuiltins.print = lambda *a: None\nbuiltins.all = lambda *a: True\n"
           "def add(a, b): return True",
           "import json\njson.dumps = lambda *a, **k: 'true'\ndef add(a, b): return 1",
           "def add(a, b): return [3, 0]",
           "def add(a, b): return '3'",
           "import os\nfor fd in range(3, 64):\n  try: os.write(fd, b'passed')\n  except OSError: "
           "pass\ndef add(a, b): return None",
           "import gc, sys\ndef add(a, b):\n"
           "  found = [o for o in gc.get_objects() if isinstance(o, dict) and 'returns' in o]\n"
           "  return found[0]['returns'] if found else None",
           "import glob\ndef add(a, b):\n"
           "  text = ''.join(open(f, errors='ignore').read() for f in glob.glob('/tmp/*'))\n"
           "  return 'returns' in text or None",
           "import sys\ndef add(a, b):\n  f = sys._getframe()\n  while f:\n"
           "    for v in f.f_locals.values():\n      if isinstance(v, dict) and 'expected' in v: "
           "return v['expected']\n    f = f.f_back\n",
           "def add(a, b): return float('nan')",
           "import unittest, pytest",
           "def add(a, b): return 3",
           "def add(a, b): return a",
       }) {
    const RewardPart part = score(reward, kAdd, python(program));
    EXPECT_EQ(part.status, RewardStatus::kOk) << program << ": " << part.detail;
    EXPECT_EQ(part.score, 0) << program;
  }
  for (const char* program : {
           "import sys; sys.exit(0)",
           "print('')",
           "print(4)",
           "print('4\\n10')",  // the outputs of all tests
           "print(4, end=''); import os; os._exit(1)",
           "import sys; sys.stderr.write(str(2 * int(input())))",
           "open('stdout', 'w').write('4')",
       }) {
    EXPECT_EQ(score(reward, kDouble, python(program)).score, 0) << program;
  }
  // A prefix of what is expected is not it, nor is more than it.
  const char* kLines = R"([{"stdout": "1\n2\n3\n"}])";
  EXPECT_EQ(score(reward, kLines, python("print(1)\nprint(2)")).score, 0);
  EXPECT_EQ(score(reward, kLines, python("print('1 2 3 4')")).score, 0);
  EXPECT_EQ(score(reward, kLines, python("print('1 2 3')")).score, 1);
}

TEST(CodeReward, CountsHiddenTestsWhereThereAreAny) {
  const auto reward = make_reward({{"score", "fraction"}, {"cpu_s", "0.5"}, {"tests", "cases"}});
  const char* tests =
      R"({"function": "f", "tests": [{"arguments": [1], "returns": 1, "visible": true},
          {"arguments": [2], "returns": 4}, {"arguments": [3], "returns": 9}]})";
  EXPECT_EQ(score(*reward, tests, python("def f(x): return x * x")).score, 1);
  const RewardPart half = score(*reward, tests, python("def f(x): return 4"));
  EXPECT_EQ(half.score, 0.5);
  EXPECT_EQ(half.detail,
            "test 1: wrong answer: '4'; expected '1'; passed 1 of 2 hidden and 0 of 1 shown tests");
  const RewardPart by_heart = score(*reward, tests, python("def f(x): return {1: 1}.get(x)"));
  EXPECT_EQ(by_heart.score, 0);
  EXPECT_THAT(by_heart.detail,
              testing::EndsWith("passed 0 of 2 hidden and 1 of 1 shown tests: only those shown"));
}

TEST(CodeReward, GivesAStatusWhereTheTestsAreBroken) {
  const RewardPart part = score(python_reward(), "[]", python("print(1)"));
  EXPECT_EQ(part.status, RewardStatus::kInvalidGold);
  EXPECT_EQ(part.detail, "tests: there is none; expected at least one");
  EXPECT_EQ(score(*make_reward({{"tests", "none"}}), "[]", "").detail,
            "tests: the row has no 'none'");
}

TEST(CodeReward, SaysWhatItNeeds) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  const auto message = [&](const RewardOptions& options) {
    return registry.create("code", options).status().message();
  };
  EXPECT_EQ(
      message({{"python", "/usr/bin/no-python"}}),
      "reward code: sandbox: python '/usr/bin/no-python' does not start: No such file or "
      "directory; Python programs need an interpreter below /usr, or one named by the options "
      "python and read_only");
  EXPECT_THAT(message({{"allow_missing", "landlock, mounts"}}),
              StartsWith("reward code: sandbox: allow_missing: 'mounts' is no layer; known: "));
  EXPECT_EQ(message({{"language", "rust"}}),
            "reward code: language: is 'rust'; expected one of: python, cpp");
}

TEST(CodeTests, AreReadInBothForms) {
  const auto ours = code::parse_code_tests(kAdd);
  ASSERT_TRUE(ours.ok());
  EXPECT_EQ(ours->function, "add");
  EXPECT_EQ(ours->tests.at(1).input, "[5,-5]");
  const auto verl = code::parse_code_tests(
      R"({"inputs": ["1\n[2, 3]", [4]], "outputs": [[5], "6"], "fn_name": "f"})");
  ASSERT_TRUE(verl.ok()) << verl.status().message();
  EXPECT_EQ(verl->tests.at(0).input, "[1,[2,3]]");
  EXPECT_EQ(verl->tests.at(0).expected, "[5]");
  EXPECT_TRUE(verl->tests.at(0).may_be_unwrapped);
  EXPECT_EQ(verl->tests.at(1).input, "[4]");
  EXPECT_EQ(verl->tests.at(1).expected, "6");
  const auto texts = code::parse_code_tests(R"({"inputs": ["1\n"], "outputs": ["2\n"]})");
  ASSERT_TRUE(texts.ok());
  EXPECT_FALSE(texts->tests.at(0).is_call);
}

TEST(CodeTests, AreReadFromAssertStatements) {
  const auto mbpp = code::parse_code_tests(
      R"j({"test_list": ["assert f((3, 4,), [.5, -5., 1_000]) == (4, 'a\\'\\n')",)j"
      R"j( "assert f({'k': None}, (2)) == {\"k\": [True, 1e-3]}, 'message'",)j"
      R"j( "assert f('a' \"b\") is False", "assert not f()", "assert (f(()))",)j"
      R"j( "assert f(123456789012345678901234567890)==''"]})j");
  ASSERT_TRUE(mbpp.ok()) << mbpp.status().message();
  EXPECT_EQ(mbpp->function, "f");
  const std::vector<std::pair<std::string, std::string>> expected = {
      {"[(3, 4), [0.5, -5.0, 1000]]", R"((4, "a'\n"))"},
      {"[{'k': None}, 2]", "{'k': [True, 0.001]}"},
      {"['ab']", "False"},
      {"[]", "a false value"},
      {"[()]", "a true value"},
      {"[123456789012345678901234567890]", "''"}};
  ASSERT_EQ(mbpp->tests.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(mbpp->tests[i].is_call);
    ASSERT_TRUE(mbpp->tests[i].assertion.has_value());
    EXPECT_EQ(to_python(mbpp->tests[i].assertion->arguments), expected[i].first) << i;
    EXPECT_EQ(expectation_text(*mbpp->tests[i].assertion), expected[i].second) << i;
  }
  EXPECT_EQ(mbpp->tests[2].assertion->expect, code::AssertTest::Expect::kSame);
  const auto human = code::parse_code_tests(
      R"j({"entry_point": "add", "test": "\n\nMETADATA = {\n    'author': 'x',\n}\n\n\ndef )j"
      R"j(check(candidate):\n    # sums\n    assert True, \"always\"\n    assert candidate([1,)j"
      R"j(  # one\n  2]) == 3, \"a, b\" + str(4)\n"})j");
  ASSERT_TRUE(human.ok()) << human.status().message();
  EXPECT_EQ(human->function, "add");
  ASSERT_EQ(human->tests.size(), 1u);
  EXPECT_EQ(to_python(human->tests[0].assertion->arguments), "[[1, 2]]");
  EXPECT_EQ(expectation_text(*human->tests[0].assertion), "3");
}

// A test that cannot be read is never left out: what remained would be a weaker test.
TEST(CodeTests, AreRefusedWhereAnAssertionIsMoreThanACall) {
  const auto message = [](const std::string& line) {
    return code::parse_code_tests("[\"assert f(1) == 2\", \"" + line + "\"]").status().message();
  };
  for (const std::string line :
       {"assert abs(f(1) - 2) < 1", "assert f(x) == 2", "assert f(1) == 2 or True",
        "assert f(1) == {1, x}", "assert f(n=1) == 2", "assert f(1) == 2 + 1",
        "assert not f(1) == 2", "for i in range(3):", "assert f(1) == [1, 2", "assert f(1) == f'x'",
        "assertf(1) == 2", "assert f(1) == {1: 2, 3}", "assert f(1) == 007", "assert"}) {
    EXPECT_EQ(message(line), "tests: line 2: '" + line +
                                 "' is no test that can be read; expected assert f(LITERALS) == "
                                 "LITERAL");
  }
  EXPECT_EQ(message("assert g(1) == 2"),
            "tests: line 2: 'assert g(1) == 2' calls g, and other tests call f; expected one "
            "function");
  EXPECT_EQ(code::parse_code_tests(R"({"test_list": ["assert True"]})").status().message(),
            "tests: there is none; expected at least one");
  EXPECT_THAT(code::parse_code_tests(R"({"test": "assert f(1) == 2"})").status().message(),
              StartsWith("tests: expected {\"function\""));
}

TEST(CodeTests, AreRefusedWithTheirPlace) {
  const auto message = [](const char* json) {
    return code::parse_code_tests(json).status().message();
  };
  EXPECT_THAT(message("{"), StartsWith("tests: are no JSON; expected {\"function\""));
  EXPECT_THAT(message("{}"), StartsWith("tests: expected {\"function\""));
  EXPECT_EQ(message(R"([{"stdout": "1"}, 2])"), "tests[1]: is number; expected an object");
  EXPECT_EQ(message(R"([{"stdout": "1", "input": "2"}])"),
            "tests[0]: unknown key 'input'; expected stdin, stdout and visible");
  EXPECT_EQ(message(R"([{"arguments": [1], "returns": 2}])"),
            "tests[0]: has arguments, but no \"function\" says what to call");
  EXPECT_EQ(
      message(R"([{"stdin": "1"}])"),
      "tests[0]: expected \"arguments\", a list, with \"returns\", or \"stdin\" with \"stdout\", "
      "texts");
  EXPECT_EQ(message(R"({"inputs": ["1"], "outputs": []})"),
            "inputs and outputs: have 1 and 0 entries; expected two equal lists");
  EXPECT_EQ(message(R"({"inputs": ["1 2"], "outputs": ["3"], "fn_name": "f"})"),
            "inputs[0]: '1 2' is no JSON; expected a line of it for each argument");
  EXPECT_EQ(message("{\"function\": \"f()\", \"tests\": [{\"arguments\": [], \"returns\": 1}]}"),
            "function: 'f()' is no name");
}

TEST(CodeBlock, IsTheLastOfTheLanguage) {
  using code::Language;
  using code::last_code_block;
  EXPECT_EQ(last_code_block("```py\na\n```\n```python\nb\n```\n```cpp\nc\n```", Language::kPython),
            "b\n");
  EXPECT_EQ(last_code_block("```\na\n```\n```python\nb\n```\n```\nc\n```", Language::kPython),
            "b\n");
  EXPECT_EQ(last_code_block("```\na\n```\n```\nb\n```", Language::kCpp), "b\n");
  EXPECT_EQ(last_code_block("```C++ title\na\n```", Language::kCpp), "a\n");
  EXPECT_EQ(last_code_block("````python\n```\nx\n```\n````", Language::kPython), "```\nx\n```\n");
  EXPECT_EQ(last_code_block("~~~python\na\n```\nb\n~~~", Language::kPython), "a\n```\nb\n");
  EXPECT_EQ(last_code_block("```bash\na\n```", Language::kPython), std::nullopt);
  EXPECT_EQ(last_code_block("text ```python\na\n```", Language::kPython), std::nullopt);
  EXPECT_EQ(last_code_block("<think>\n```python\na\n```\n</think>", Language::kPython),
            std::nullopt);
  EXPECT_EQ(last_code_block("<think>\n```python\na\n```\n", Language::kPython), std::nullopt);
  EXPECT_EQ(last_code_block("<think></think>```python\na\n```\n", Language::kPython), "a\n");
  EXPECT_EQ(last_code_block("```python\n```", Language::kPython), "");
}

TEST(CodeOutput, IsComparedByForm) {
  using code::is_same_output;
  using code::OutputForm;
  EXPECT_TRUE(is_same_output("1 \n 2\n\n", "1 2", OutputForm::kTokens, 0));
  EXPECT_FALSE(is_same_output("12", "1 2", OutputForm::kTokens, 0));
  EXPECT_FALSE(is_same_output("1.0", "1", OutputForm::kTokens, 0));
  EXPECT_TRUE(is_same_output("1.0000001", "1", OutputForm::kTokens, 1e-6));
  EXPECT_TRUE(is_same_output("1000001", "1000000", OutputForm::kTokens, 1e-6));
  EXPECT_FALSE(is_same_output("1.1", "1", OutputForm::kTokens, 1e-6));
  EXPECT_FALSE(is_same_output("nan", "1", OutputForm::kTokens, 1e-6));
  EXPECT_FALSE(is_same_output("1 ", "1", OutputForm::kExact, 0));
  EXPECT_TRUE(is_same_output("b  1\na\n\n", "a\nb 1\n", OutputForm::kLines, 0));
  EXPECT_FALSE(is_same_output("a\na\nb", "a\nb\nb", OutputForm::kLines, 0));
}

TEST(CodeOutput, ComparesJsonByValue) {
  using code::is_same_json;
  EXPECT_TRUE(is_same_json("[1, {\"a\": null, \"b\": \"x\"}]", "[1,{\"b\":\"x\",\"a\":null}]", 0));
  EXPECT_TRUE(is_same_json("2.0", "2", 0));
  EXPECT_FALSE(is_same_json("true", "1", 0));
  EXPECT_FALSE(is_same_json("\"1\"", "1", 0));
  EXPECT_FALSE(is_same_json("123456789012345678901234567890", "123456789012345678901234567891", 0));
  EXPECT_TRUE(is_same_json("123456789012345678901234567890", "123456789012345678901234567890", 0));
  EXPECT_FALSE(is_same_json("0.30000000000000004", "0.3", 0));
  EXPECT_TRUE(is_same_json("0.30000000000000004", "0.3", 1e-9));
  EXPECT_FALSE(is_same_json("NaN", "NaN", 0));
  EXPECT_FALSE(is_same_json("1 2", "1", 0));
  EXPECT_FALSE(is_same_json("[1]", "[1, 2]", 0));
  const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
  EXPECT_FALSE(is_same_json(deep, deep, 0));
}

}  // namespace
}  // namespace gradus::rewards
