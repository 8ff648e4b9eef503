// SPDX-License-Identifier: Apache-2.0
#include "rewards/code/assert_tests.h"

#include <algorithm>

#include "common/strings.h"
#include "rewards/code/python_literal.h"
#include "rewards/internal/builtin.h"

namespace gradus::rewards::code {
namespace {

struct Assertion {
  bool tests_nothing = false;  // assert True
  std::string function;
  AssertTest test;
};

// Reads one assertion from the place after the word. Members are false where it is something else.
class AssertReader {
 public:
  AssertReader(std::string_view text, size_t at) : text_(text), reader_(text, at) {}

  // Where the next statement begins.
  size_t end() const { return end_; }

  bool assertion(Assertion& out) {
    const bool is_negated = reader_.word("not");
    const bool has_bracket = reader_.open('(');
    out.function = reader_.name();
    if (out.function == "True" && !is_negated) {
      out.tests_nothing = true;
    } else {
      if (out.function.empty() || !reader_.sequence('(', ')', out.test.arguments, 0)) return false;
      if (!expectation(is_negated, out.test)) return false;
    }
    if (has_bracket && !reader_.close(')')) return false;
    return end_of_statement();
  }

 private:
  bool expectation(bool is_negated, AssertTest& test) {
    if (reader_.symbol("==")) {
      test.expect = AssertTest::Expect::kEqual;
      return !is_negated && reader_.value(test.expected);
    }
    if (reader_.word("is")) {
      const char first = reader_.peek();
      test.expect = AssertTest::Expect::kSame;
      return !is_negated && (first == 'T' || first == 'F' || first == 'N') &&
             reader_.value(test.expected);
    }
    test.expect = AssertTest::Expect::kTruth;
    test.expected.kind = PythonValue::Kind::kBool;
    test.expected.truth = !is_negated;
    return true;
  }

  // A message may follow, which is an expression of any kind on the same line.
  bool end_of_statement() {
    reader_.skip_space();
    const size_t at = reader_.at();
    end_ = std::min(text_.find('\n', at), text_.size());
    return at >= text_.size() || std::string_view("\n\r,#").find(text_[at]) != text_.npos;
  }

  std::string_view text_;
  LiteralReader reader_;
  size_t end_ = 0;
};

bool is_passed_over(std::string_view line) {
  return line.empty() || line[0] == '#' || line == "def check(candidate):" ||
         line.starts_with("import ") || line.starts_with("from ") || line == "pass";
}

}  // namespace

Result<CodeTests> parse_asserts(std::string_view python, std::string_view function) {
  CodeTests tests;
  tests.function = std::string(function);
  for (size_t begin = 0; begin < python.size();) {
    size_t end = std::min(python.find('\n', begin), python.size());
    const std::string_view line = trim(python.substr(begin, end - begin));
    const auto refuse = [&](std::string_view why) {
      const auto number = 1 + std::count(python.begin(), python.begin() + begin, '\n');
      return invalid_argument("line {}: '{}' {}", number, excerpt(line), why);
    };
    if (line.starts_with("METADATA") && line.ends_with('{')) {
      end = python.find("\n}", begin);
      if (end == std::string_view::npos) return refuse("has no end");
      end = std::min(python.find('\n', end + 1), python.size());
    } else if (!is_passed_over(line)) {
      constexpr std::string_view kAssert = "assert";
      Assertion one;
      AssertReader reader(python, begin + python.substr(begin).find(kAssert) + kAssert.size());
      if (!line.starts_with(kAssert) || line.size() == kAssert.size() ||
          is_name_part(line[kAssert.size()]) || !reader.assertion(one)) {
        return refuse("is no test that can be read; expected assert f(LITERALS) == LITERAL");
      }
      if (has_nan(one.test.expected)) {
        return refuse("expects nan, which equals nothing, so that no program can pass");
      }
      end = reader.end();
      if (!one.tests_nothing) {
        if (one.function == "candidate" && !function.empty()) one.function = tests.function;
        if (tests.function.empty()) tests.function = one.function;
        if (one.function != tests.function) {
          return refuse(fmt::format("calls {}, and other tests call {}; expected one function",
                                    one.function, tests.function));
        }
        CodeTest& test = tests.tests.emplace_back();
        test.is_call = true;
        test.assertion = std::move(one.test);
      }
    }
    begin = end + 1;
  }
  return tests;
}

}  // namespace gradus::rewards::code
