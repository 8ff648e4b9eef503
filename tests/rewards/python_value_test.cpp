// SPDX-License-Identifier: Apache-2.0
#include "rewards/code/python_value.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "rewards/code/assert_tests.h"
#include "rewards/code/code_tests.h"
#include "rewards/reward.h"

namespace gradus::rewards {
namespace {

std::unique_ptr<Reward> make_reward(const RewardOptions& options) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  auto reward = registry.create("code", options);
  EXPECT_TRUE(reward.ok()) << reward.status().message();
  return std::move(*reward);
}

RewardPart score(const Reward& reward, const std::vector<std::string>& assertions,
                 const std::string& code, const std::string& language = "python") {
  data::Prompt prompt;
  prompt.answer = nlohmann::json(assertions).dump();
  std::vector<data::Trajectory> trajectories(1);
  trajectories[0].text = "```" + language + "\n" + code + "\n```\n";
  const Group group{&prompt, trajectories};
  return reward.score_batch(std::span(&group, 1)).at(0);
}

const Reward& python_reward() {
  static const std::unique_ptr<Reward> reward = make_reward({{"cpu_s", "0.5"}, {"wall_s", "1"}});
  return *reward;
}

std::string outcome(const std::string& assertion, const std::string& code) {
  const RewardPart part = score(python_reward(), {assertion}, code);
  EXPECT_EQ(part.status, RewardStatus::kOk) << part.detail;
  return part.score == 1 ? "passes" : part.detail;
}

TEST(PythonValue, ReachesTheFunctionAndComesBackAsItIs) {
  // A tuple that is added to, and one that is hashed.
  EXPECT_EQ(outcome("assert f((1, 2), 3) == (1, 2, 3)", "def f(t, x): return t + (x,)"), "passes");
  EXPECT_EQ(outcome("assert f((1, (2, 3))) == 1", "def f(t): return len({t})"), "passes");
  const std::string echo = R"(
def f(x):
  def kinds(v):
    name = type(v).__name__
    if isinstance(v, dict): v = [w for pair in v.items() for w in pair]
    if isinstance(v, (list, set, frozenset, tuple)) or name == 'dict':
      return name + '(' + ','.join(kinds(w) for w in v) + ')'
    return name
  return (kinds(x), x))";
  for (const auto& [literal, kinds] : std::vector<std::pair<std::string, std::string>>{
           {"None", "NoneType"},
           {"True", "bool"},
           {"-5", "int"},
           {"123456789012345678901234567890", "int"},
           {"9007199254740993", "int"},
           {"1.0", "float"},
           {"-1e308", "float"},
           {"float('inf')", "float"},
           {"-math.inf", "float"},
           {"2.5j", "complex"},
           {R"('a\u20ac"\n')", "str"},
           {R"(b'\x00\xffz')", "bytes"},
           {"(1,)", "tuple(int)"},
           {"()", "tuple()"},
           {"[(1, 2), []]", "list(tuple(int,int),list())"},
           {"{1}", "set(int)"},
           {"set()", "set()"},
           {"frozenset({(1, None)})", "frozenset(tuple(int,NoneType))"},
           {"{1: 'a', (2, 3): {4: None}}", "dict(int,str,tuple(int,int),dict(int,NoneType))"},
           {"{None: 1, 2.5: 2}", "dict(NoneType,int,float,int)"}}) {
    EXPECT_EQ(outcome(fmt::format("assert f({0}) == ('{1}', {0})", literal, kinds), echo), "passes")
        << literal;
  }
  EXPECT_EQ(outcome("assert f(float('nan')) == True", "def f(x): return x != x"), "passes");
  // More digits than Python writes out by itself.
  EXPECT_EQ(outcome("assert f() == 0", "def f(): return 10 ** 9000").substr(0, 30),
            "test 1: wrong answer: '1000000");
}

// Each as Python's own assert decides it, but for objects that bring an __eq__ of their own.
TEST(PythonValue, IsComparedAsPythonDoes) {
  struct Case {
    const char* assertion;
    const char* returns;
    bool holds;
  };
  for (const Case& one : std::vector<Case>{
           {"assert f() == (1, 2)", "[1, 2]", false},
           {"assert f() == [1, 2]", "(1, 2)", false},
           {"assert f() == [1, [2]]", "[1.0, [True + 1]]", true},
           {"assert f() == [1, 2]", "[1]", false},
           {"assert f() == True", "1", true},
           {"assert f() == 1", "True", true},
           {"assert f() == True", "2", false},
           {"assert f() is True", "1", false},
           {"assert f() is True", "5 > 3", true},
           {"assert f() is None", "None", true},
           {"assert f() is None", "0", false},
           {"assert f()", "3", true},
           {"assert f()", "'False'", true},
           {"assert f()", "[]", false},
           {"assert f()", "__import__('re').match('a', 'a')", true},
           {"assert f()", "__import__('re').match('a', 'b')", false},
           {"assert not f()", "()", true},
           {"assert not f()", "0.0", true},
           {"assert not f()", "None", true},
           {"assert not f()", "object()", false},
           {"assert f() == {1, 2}", "frozenset([2, 1])", true},
           {"assert f() == {1, 2}", "{1.0, 2, True}", true},
           {"assert f() == {1, 2}", "[1, 2]", false},
           {"assert f() == {1, 2}", "{1}", false},
           {"assert f() == set([1, 2])", "{2, 1}", true},
           {"assert f() == {frozenset([1, (2,)])}", "{frozenset([(2.0,), 1])}", true},
           {"assert f() == {}", "set()", false},
           {"assert f() == {1: 'a'}", "{True: 'a'}", true},
           {"assert f() == {1: 'a'}", "{'1': 'a'}", false},
           {"assert f() == {1: 'a'}", "{1: 'b'}", false},
           {"assert f() == {'a': 1}", "__import__('collections').Counter('a')", true},
           {"assert f() == {'a': [1]}", "__import__('collections').OrderedDict(a=[1])", true},
           {"assert f() == (1, 2)", "__import__('collections').namedtuple('P', 'x y')(1, 2)", true},
           {"assert f() == [1]", "__import__('collections').deque([1])", false},
           {"assert f() == [0, 1]", "range(2)", false},
           {"assert f() == 'a'", "b'a'", false},
           {"assert f() == b'a'", "bytearray(b'a')", true},
           {"assert f() == 0.5", "__import__('fractions').Fraction(1, 2)", true},
           {"assert f() == 0.1", "__import__('fractions').Fraction(1, 10)", false},
           {"assert f() == 3", "__import__('decimal').Decimal('3.0')", true},
           {"assert f() == 9007199254740993", "9007199254740992.0", false},
           {"assert f() == 9007199254740992", "9007199254740992.0", true},
           {"assert f() == 0.3", "0.1 + 0.2", false},
           {"assert f() == 0", "-0.0", true},
           {"assert f() == float('inf')", "float('inf')", true},
           {"assert f() == float('inf')", "1e308", false},
           {"assert f() == 1.0", "float('nan')", false},
           {"assert f() == 3", "3 + 0j", true},
           {"assert f() == ''", "None", false},
           {"assert f() == 5", "type('L', (int,), {'__eq__': lambda a, b: True})(4)", false},
           {"assert f() == (4, 5)", "type('L', (tuple,), {'__eq__': lambda a, b: True})()", false},
           {"assert f() == 5", "type('L', (), {'__eq__': lambda a, b: True})()", false},
           {"assert f() == {5}",
            "{type('L', (int,), {'__eq__': lambda a, b: True, '__hash__': lambda a: 5})(4)}",
            false},
       }) {
    EXPECT_EQ(outcome(one.assertion, std::string("def f(): return ") + one.returns) == "passes",
              one.holds)
        << one.assertion << " with " << one.returns;
  }
  const auto near = make_reward({{"tolerance", "1e-6"}});
  EXPECT_EQ(
      score(*near, {"assert f() == (0.3, [1, 2])"}, "def f(): return (0.1 + 0.2, [1.0000001, 2])")
          .score,
      1);
  EXPECT_EQ(score(*near, {"assert f() == True"}, "def f(): return 1.0000001").score, 0);
}

// What is written by force to the descriptor of results is no value, or is compared like any other.
TEST(PythonValue, IsRefusedWhereItIsForged) {
  for (const std::string wire :
       {R"({"i": "05"})", R"({"i": 5})", R"({"i": ""})", R"({"q": 5})", R"({"t": 5})", "[5]",
        R"({"o": ["int", true]})", R"({"s": [[5]]})", R"({"d": [5]})", "5 5", "{", "",
        R"({"i": "5", "t": []})", R"({"": 5})", R"({"c": [5, 0]})", R"({"f": "5"})",
        R"({"b": "3"})"}) {
    EXPECT_NE(outcome("assert f() == 5",
                      "import os\ndef f():\n  os.write(4, rb'" + wire + "')\n  os._exit(0)"),
              "passes")
        << wire;
  }
  EXPECT_NE(outcome("assert f()",
                    "import os\ndef f():\n  os.write(4, b'[' * 500 + b']' * 500)\n  os._exit(0)"),
            "passes");
  // By force, but right: it is what the program says, and the expected value is not there to copy.
  EXPECT_EQ(outcome("assert f() == 5", "import os\ndef f():\n  os.write(4, b'5')\n  os._exit(0)"),
            "passes");
}

TEST(PythonValue, HasAFormForCppOrSaysThatItHasNone) {
  const auto reward = make_reward({{"language", "cpp"}, {"cpu_s", "0.5"}});
  const auto score_cpp = [&](const std::vector<std::string>& assertions, const std::string& code) {
    return score(*reward, assertions, "#include <utility>\n#include <vector>\n" + code, "cpp");
  };
  const std::vector<std::string> pairs = {"assert f((3, 4), {1}) == (4, 3)",
                                          "assert f((1, 2), [3]) == (2, 1)"};
  const std::string head = "std::pair<int, int> f(std::pair<int, int> p, std::vector<int>) ";
  EXPECT_EQ(score_cpp(pairs, head + "{ return {p.second, p.first}; }").score, 1);
  EXPECT_EQ(score_cpp(pairs, head + "{ return p; }").detail,
            "test 1: wrong answer: '[3, 4]'; expected '[4, 3]'");
  const std::vector<std::string> truths = {"assert odd(3)", "assert not odd(4)",
                                           "assert odd(5) == True"};
  EXPECT_EQ(score_cpp(truths, "int odd(int x) { return x % 2; }").score, 1);
  EXPECT_EQ(score_cpp(truths, "bool odd(int x) { return true; }").detail,
            "test 2: wrong answer: 'True'; expected 'a false value'");
  for (const auto& [assertion, value] :
       std::vector<std::pair<std::string, std::string>>{{"assert f(b'x') == 1", "[b'x']"},
                                                        {"assert f({1: 2}) == 1", "[{1: 2}]"},
                                                        {"assert f(math.inf) == 1", "[inf]"},
                                                        {"assert f() == {1, 2}", "{1, 2}"}}) {
    const RewardPart part = score_cpp({"assert f() == 1", assertion}, "int f() { return 1; }");
    EXPECT_EQ(part.status, RewardStatus::kInvalidGold);
    EXPECT_EQ(part.detail, "tests: test 2: '" + value +
                               "' has no form for C++, whose calls know numbers, texts, lists and "
                               "dictionaries by text");
  }
}

TEST(PythonLiteral, IsReadAsPythonReadsIt) {
  const auto read = [](const std::string& literal) -> std::string {
    const auto tests = code::parse_asserts("assert f() == " + literal, "");
    if (!tests.ok()) return "refused";
    return expectation_text(*tests->tests.at(0).assertion);
  };
  for (const auto& [literal, value] : std::vector<std::pair<std::string, std::string>>{
           {"0x_ff", "255"},
           {"0XFFFFFFFFFFFFFFFFFFFF", "1208925819614629174706175"},
           {"0b101", "5"},
           {"0o17", "15"},
           {"00", "0"},
           {"-0", "0"},
           {"+7", "7"},
           {"007.5", "7.5"},
           {"1e400", "inf"},
           {"1_0.5e-1_0", "1.05e-09"},
           {"1+2j", "(1+2j)"},
           {"1 - 2J", "(1-2j)"},
           {"((1))", "1"},
           {"(1,)", "(1,)"},
           {"{1, 2,}", "{1, 2}"},
           {"{}", "{}"},
           {"set()", "set()"},
           {"set((1, 2))", "{1, 2}"},
           {"frozenset([1])", "frozenset({1})"},
           {"tuple([1, 2])", "(1, 2)"},
           {"list((1,))", "[1]"},
           {"{(1, 2): {3}, None: b'x'}", "{(1, 2): {3}, None: b'x'}"},
           {"float('-Infinity')", "-inf"},
           {"'''a\n'b'''", R"("a\n'b")"},
           {R"(r'\d\'')", R"("\\d\\'")"},
           {R"('\d\x41\101\u00e9')", R"('\\dAAé')"},
           {R"(b'\x00\u0041' rb'\x')", R"(b'\x00\\u0041\\x')"},
           {"'a' \"b\"", "'ab'"},
           {"[1, # one\n 2]", "[1, 2]"},
           {"'a'\n'b'", "refused"},
           {"[*a]", "refused"},
           {"{**a}", "refused"},
           {"{[1]}", "refused"},
           {"{[1]: 2}", "refused"},
           {"{([1],): 2}", "refused"},
           {"{1: 2, 3}", "refused"},
           {"{1, 2: 3}", "refused"},
           {"set([[1]])", "refused"},
           {"007", "refused"},
           {"0x", "refused"},
           {"0b2", "refused"},
           {"1__0", "refused"},
           {"1_", "refused"},
           {"1.e", "refused"},
           {"- -1", "refused"},
           {"-True", "refused"},
           {"f'a'", "refused"},
           {"ub'a'", "refused"},
           {"'a' b'b'", "refused"},
           {"b'é'", "refused"},
           {R"('\N{DASH}')", "refused"},
           {R"('\ud800')", "refused"},
           {"'a\nb'", "refused"},
           {"'a", "refused"},
           {"r'a\\", "refused"},
           {"range(3)", "refused"},
           {"sorted([2, 1])", "refused"},
           {"float('x')", "refused"},
           {"nan", "refused"},
           {"2 ** 3", "refused"},
           {"[1] * 2", "refused"},
           {"(,)", "refused"},
           {"[1,,2]", "refused"},
           {std::string(300, '[') + std::string(300, ']'), "refused"}}) {
    EXPECT_EQ(read(literal), value) << literal;
  }
  EXPECT_EQ(
      code::parse_asserts("assert f(1) == 2\nassert f() == [float('nan')]", "").status().message(),
      "line 2: 'assert f() == [float('nan')]' expects nan, which equals nothing, so that no "
      "program can pass");
}

}  // namespace
}  // namespace gradus::rewards
