// SPDX-License-Identifier: Apache-2.0
#include <map>

#include "data/internal/jinja/runtime.h"
#include "data/internal/jinja/text.h"

namespace gradus::data::jinja {
namespace {

using Args = CallArguments;
using Run = Interpreter;

bool has_remainder(Run& run, const Value& value, Int divisor, Int remainder) {
  const Value rest = binary(run.budget(), BinaryOp::kMod, value, Value::integer(divisor));
  return equals(run.budget(), rest, Value::integer(remainder));
}

template <bool (*kCheck)(const Value&)>
bool plain(Run&, const Value& value, Args& args) {
  args.finish();
  return kCheck(value);
}

bool is_defined(const Value& v) { return !v.is_undefined(); }
bool is_undefined(const Value& v) { return v.is_undefined(); }
bool is_none(const Value& v) { return v.is_none(); }
bool is_boolean(const Value& v) { return v.is(Type::kBool); }
bool is_true(const Value& v) { return v.is(Type::kBool) && v.as_bool(); }
bool is_false(const Value& v) { return v.is(Type::kBool) && !v.as_bool(); }
bool is_integer(const Value& v) { return v.is(Type::kInt); }
bool is_float(const Value& v) { return v.is(Type::kFloat); }
bool is_number(const Value& v) { return v.is_number(); }
bool is_string(const Value& v) { return v.is_string(); }
bool is_mapping(const Value& v) { return v.is(Type::kDict); }
bool is_escaped(const Value& v) { return v.is_markup(); }
bool is_sequence(const Value& v) {
  return v.is_undefined() || v.is_string() || v.is_sequence() || v.is(Type::kDict) ||
         v.is(Type::kRange);
}
bool is_callable(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
    case Type::kFunction:
    case Type::kMethod:
    case Type::kMacro:
    case Type::kLoop:
    case Type::kJoiner:
      return true;
    default:
      return false;
  }
}

bool test_odd(Run& run, const Value& value, Args& args) {
  args.finish();
  return has_remainder(run, value, 2, 1);
}
bool test_even(Run& run, const Value& value, Args& args) {
  args.finish();
  return has_remainder(run, value, 2, 0);
}
bool test_divisibleby(Run& run, const Value& value, Args& args) {
  const Value number = args.require("num");
  args.finish();
  return equals(run.budget(), binary(run.budget(), BinaryOp::kMod, value, number),
                Value::integer(0));
}
bool test_lower(Run& run, const Value& value, Args& args) {
  args.finish();
  return is_lower(to_text(run.budget(), value));
}
bool test_upper(Run& run, const Value& value, Args& args) {
  args.finish();
  return is_upper(to_text(run.budget(), value));
}
bool test_sameas(Run&, const Value& value, Args& args) {
  const Value other = args.require("other");
  args.finish();
  return identical(value, other);
}
bool test_in(Run& run, const Value& value, Args& args) {
  const Value sequence = args.require("seq");
  args.finish();
  return contains(run.budget(), sequence, value);
}
bool test_filter(Run&, const Value& value, Args& args) {
  args.finish();
  return value.is_string() && find_filter(value.text()) != nullptr;
}
bool test_test(Run&, const Value& value, Args& args) {
  args.finish();
  return value.is_string() && find_test(value.text()) != nullptr;
}
bool test_eq(Run& run, const Value& value, Args& args) {
  const Value other = args.require("other");
  args.finish();
  return equals(run.budget(), value, other);
}
bool test_ne(Run& run, const Value& value, Args& args) { return !test_eq(run, value, args); }

bool ordered(Run& run, const Value& value, Args& args, std::string_view symbol) {
  const Value other = args.require("other");
  args.finish();
  return compare(run.budget(), value, other, symbol);
}
bool test_gt(Run& run, const Value& value, Args& args) { return ordered(run, value, args, ">"); }
bool test_ge(Run& run, const Value& value, Args& args) { return ordered(run, value, args, ">="); }
bool test_lt(Run& run, const Value& value, Args& args) { return ordered(run, value, args, "<"); }
bool test_le(Run& run, const Value& value, Args& args) { return ordered(run, value, args, "<="); }

}  // namespace

TestFunction find_test(std::string_view name) {
  static const std::map<std::string_view, TestFunction> kTests = {
      {"odd", test_odd},
      {"even", test_even},
      {"divisibleby", test_divisibleby},
      {"defined", plain<is_defined>},
      {"undefined", plain<is_undefined>},
      {"filter", test_filter},
      {"test", test_test},
      {"none", plain<is_none>},
      {"boolean", plain<is_boolean>},
      {"false", plain<is_false>},
      {"true", plain<is_true>},
      {"integer", plain<is_integer>},
      {"float", plain<is_float>},
      {"lower", test_lower},
      {"upper", test_upper},
      {"string", plain<is_string>},
      {"mapping", plain<is_mapping>},
      {"number", plain<is_number>},
      {"sequence", plain<is_sequence>},
      {"iterable", plain<is_iterable>},
      {"callable", plain<is_callable>},
      {"sameas", test_sameas},
      {"escaped", plain<is_escaped>},
      {"in", test_in},
      {"==", test_eq},
      {"eq", test_eq},
      {"equalto", test_eq},
      {"!=", test_ne},
      {"ne", test_ne},
      {">", test_gt},
      {"gt", test_gt},
      {"greaterthan", test_gt},
      {"ge", test_ge},
      {">=", test_ge},
      {"<", test_lt},
      {"lt", test_lt},
      {"lessthan", test_lt},
      {"<=", test_le},
      {"le", test_le},
  };
  const auto found = kTests.find(name);
  return found == kTests.end() ? nullptr : found->second;
}

}  // namespace gradus::data::jinja
