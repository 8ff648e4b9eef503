// SPDX-License-Identifier: Apache-2.0
#include "rewards/code/code_tests.h"

#include <nlohmann/json.hpp>

#include "common/strings.h"
#include "rewards/code/assert_tests.h"
#include "rewards/internal/builtin.h"

namespace gradus::rewards::code {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kExpected =
    "expected {\"function\", \"tests\": [{\"arguments\", \"returns\"}]}, "
    "{\"tests\": [{\"stdin\", \"stdout\"}]}, {\"inputs\", \"outputs\"}, {\"test_list\": "
    "[\"assert ..\"]} or {\"test\", \"entry_point\"}";

Result<CodeTest> parse_test(const Json& json) {
  if (!json.is_object()) return invalid_argument("is {}; expected an object", json.type_name());
  CodeTest test;
  test.is_call = json.contains("arguments");
  const char* const input = test.is_call ? "arguments" : "stdin";
  const char* const expected = test.is_call ? "returns" : "stdout";
  for (const auto& [key, value] : json.items()) {
    if (key == "visible") {
      if (!value.is_boolean())
        return invalid_argument("visible: is {}; expected true or false", value.type_name());
      test.is_visible = value.get<bool>();
    } else if (key != input && key != expected) {
      return invalid_argument("unknown key '{}'; expected {}, {} and visible", key, input,
                              expected);
    }
  }
  if (!json.contains(expected) || (test.is_call && !json["arguments"].is_array()) ||
      (!test.is_call &&
       !(json["stdout"].is_string() && json.value("stdin", Json("")).is_string()))) {
    return invalid_argument(
        "expected \"arguments\", a list, with \"returns\", or \"stdin\" with "
        "\"stdout\", texts");
  }
  test.input = test.is_call ? json["arguments"].dump() : json.value("stdin", std::string());
  test.expected = test.is_call ? json["returns"].dump() : json["stdout"].get<std::string>();
  return test;
}

// An input of a call in verl's form: a list of arguments, or a line of JSON for each.
Result<std::string> arguments_of(const Json& input) {
  if (input.is_array()) return input.dump();
  if (!input.is_string()) return invalid_argument("is {}; expected a list", input.type_name());
  Json list = Json::array();
  const std::string text = input.get<std::string>();
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    const std::string line = text.substr(begin, end - begin);
    if (!line.empty()) list.push_back(Json::parse(line, nullptr, false));
    if (!line.empty() && list.back().is_discarded()) {
      return invalid_argument("'{}' is no JSON; expected a line of it for each argument", line);
    }
    begin = end + 1;
  }
  return list.dump();
}

Result<CodeTests> parse_pairs(const Json& json) {
  CodeTests tests;
  const Json inputs = json.value("inputs", Json()), outputs = json.value("outputs", Json());
  if (!inputs.is_array() || !outputs.is_array() || inputs.size() != outputs.size()) {
    return invalid_argument("inputs and outputs: have {} and {} entries; expected two equal lists",
                            inputs.size(), outputs.size());
  }
  const Json name = json.value("fn_name", Json());
  if (!name.is_null() && !name.is_string()) {
    return invalid_argument("fn_name: is {}; expected a string", name.type_name());
  }
  if (name.is_string()) tests.function = name.get<std::string>();
  for (size_t i = 0; i < inputs.size(); ++i) {
    CodeTest test;
    test.is_call = !tests.function.empty();
    if (test.is_call) {
      auto arguments = arguments_of(inputs[i]);
      if (!arguments.ok()) return arguments.status().with_prefix(fmt::format("inputs[{}]", i));
      test.input = std::move(*arguments);
      Json expected = outputs[i];
      if (expected.is_string()) {
        const Json read = Json::parse(expected.get<std::string>(), nullptr, false);
        if (!read.is_discarded()) expected = read;
      }
      test.may_be_unwrapped = expected.is_array() && expected.size() == 1;
      test.expected = expected.dump();
    } else if (inputs[i].is_string() && outputs[i].is_string()) {
      test.input = inputs[i].get<std::string>();
      test.expected = outputs[i].get<std::string>();
    } else {
      return invalid_argument("inputs[{}]: input and output are {} and {}; expected texts", i,
                              inputs[i].type_name(), outputs[i].type_name());
    }
    tests.tests.push_back(std::move(test));
  }
  return tests;
}

Result<CodeTests> parse_list(const Json& json) {
  CodeTests tests;
  const Json& list = json.is_array() ? json : json["tests"];
  if (!list.is_array()) return invalid_argument("tests: is {}; expected a list", list.type_name());
  if (json.is_object() && json.contains("function")) {
    if (!json["function"].is_string()) return invalid_argument("function: expected a string");
    tests.function = json["function"].get<std::string>();
  }
  for (size_t i = 0; i < list.size(); ++i) {
    auto test = parse_test(list[i]);
    if (!test.ok()) return test.status().with_prefix(fmt::format("tests[{}]", i));
    if (test->is_call && tests.function.empty()) {
      return invalid_argument("tests[{}]: has arguments, but no \"function\" says what to call", i);
    }
    tests.tests.push_back(std::move(*test));
  }
  return tests;
}

// MBPP's list of statements, or the one text of HumanEval.
Result<CodeTests> parse_statements(const Json& json) {
  const bool is_list = json.is_array() || json.contains("test_list");
  const Json statements = json.is_array() ? json : json[is_list ? "test_list" : "test"];
  const Json name = json.is_array() ? Json() : json.value("entry_point", Json());
  std::string text;
  if (is_list && statements.is_array()) {
    for (const Json& one : statements) {
      if (!one.is_string()) {
        return invalid_argument("tests: one is {}; expected texts", one.type_name());
      }
      text += one.get<std::string>() + "\n";
    }
  } else if (!is_list && statements.is_string() && name.is_string()) {
    text = statements.get<std::string>();
  } else {
    return invalid_argument("tests: {}", kExpected);
  }
  auto tests = parse_asserts(text, name.is_string() ? name.get<std::string>() : std::string());
  if (!tests.ok()) return tests.status().with_prefix("tests");
  return tests;
}

bool has_statements(const Json& json) {
  if (json.is_array()) return !json.empty() && json[0].is_string();
  return json.is_object() && (json.contains("test_list") || json.contains("test"));
}

}  // namespace

Result<CodeTests> parse_code_tests(std::string_view text) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, false);
  if (json.is_discarded()) return invalid_argument("tests: are no JSON; {}", kExpected);
  const bool has_list = json.is_array() || (json.is_object() && json.contains("tests"));
  const bool are_statements = has_statements(json);
  if (!are_statements && !has_list && !(json.is_object() && json.contains("inputs"))) {
    return invalid_argument("tests: {}", kExpected);
  }
  auto tests = are_statements ? parse_statements(json)
               : has_list     ? parse_list(json)
                              : parse_pairs(json);
  if (!tests.ok()) return tests;
  if (tests->tests.empty()) return invalid_argument("tests: there is none; expected at least one");
  for (const char c : tests->function) {
    const bool is_part = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!is_part && c != '_' && c != '.') {
      return invalid_argument("function: '{}' is no name", tests->function);
    }
  }
  return tests;
}

bool holds(const AssertTest& test, const PythonValue& returned, double tolerance) {
  switch (test.expect) {
    case AssertTest::Expect::kEqual:
      return is_equal(returned, test.expected, tolerance);
    case AssertTest::Expect::kSame:
      return returned.kind == test.expected.kind && returned.truth == test.expected.truth;
    case AssertTest::Expect::kTruth:
      return is_true(returned) == test.expected.truth;
  }
  return false;
}

std::string expectation_text(const AssertTest& test) {
  if (test.expect != AssertTest::Expect::kTruth) return to_python(test.expected);
  return test.expected.truth ? "a true value" : "a false value";
}

Status check_cpp_tests(const CodeTests& tests) {
  for (size_t i = 0; i < tests.tests.size(); ++i) {
    const auto& assertion = tests.tests[i].assertion;
    if (!assertion.has_value()) continue;
    for (const auto* value : {&assertion->arguments, &assertion->expected}) {
      if (to_json_value(*value, value == &assertion->arguments).has_value()) continue;
      return invalid_argument(
          "tests: test {}: '{}' has no form for C++, whose calls know numbers, texts, lists and "
          "dictionaries by text",
          i + 1, excerpt(to_python(*value)));
    }
  }
  return {};
}

}  // namespace gradus::rewards::code
