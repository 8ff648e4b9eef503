// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "rewards/code/python_value.h"

// The tests that a program is judged by, as a row of data brings them. They stay outside the
// sandbox: a program sees the input of one test at a time and never what is expected.
namespace gradus::rewards::code {

// A test that was written as a statement of Python.
struct AssertTest {
  enum class Expect {
    kEqual,  // the returned value == expected
    kSame,   // `is`, of None, True or False
    kTruth,  // bool() of it is the one expected
  };
  PythonValue arguments;  // a list
  Expect expect = Expect::kEqual;
  PythonValue expected;
};

struct CodeTest {
  bool is_call = false;
  std::string input;                      // stdin; or the arguments, a JSON list
  std::string expected;                   // stdout; or the value returned, as JSON
  std::optional<AssertTest> assertion{};  // then a call, and the two above are empty
  // As APPS writes them, whose expected values stand in a list of one: that one will do too.
  bool may_be_unwrapped = false;
  bool is_visible = false;  // shown in the prompt, so a program can answer it by heart
};

struct CodeTests {
  std::string function;  // what is called; empty if no test is a call
  std::vector<CodeTest> tests;
};

// Three forms, each with at least one test:
//   {"function": "f", "tests": [{"arguments": [1, 2], "returns": 3, "visible": true}, ...]}, or
//   with
//   {"stdin": "1 2\n", "stdout": "3\n"} in place of calls; the list of tests may stand alone
//   {"inputs": [...], "outputs": [...], "fn_name": "f"}, as verl, APPS and TACO have it
//   {"test_list": ["assert f(1, 2) == 3", ...]}, as MBPP has it (or the list alone), and
//   {"test": "def check(candidate): ...", "entry_point": "f"}, HumanEval's; see assert_tests.h
// InvalidArgument says what is wrong with which test.
Result<CodeTests> parse_code_tests(std::string_view json);

// Whether an assertion holds for what the function returned.
bool holds(const AssertTest& test, const PythonValue& returned, double tolerance);

// What it expects, for people: "(4, 5)", "a true value".
std::string expectation_text(const AssertTest& test);

// InvalidArgument names the first assertion whose values C++ has no form of (see to_json_value()).
Status check_cpp_tests(const CodeTests& tests);

}  // namespace gradus::rewards::code
