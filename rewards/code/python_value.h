// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

// Values of Python, as its literals write them, and its `==` on them. What a program returns is
// compared here, outside the sandbox and by kind and content: no method of the program is asked.
namespace gradus::rewards::code {

struct PythonValue {
  enum class Kind {
    kNone,
    kBool,
    kInt,
    kFloat,
    kComplex,
    kText,
    kBytes,
    kList,
    kTuple,
    kSet,
    kFrozenset,
    kDict,
    kObject,  // of any other type: equal to nothing here
  };
  Kind kind = Kind::kNone;
  bool truth = false;  // of a bool, and of an object, which says it itself
  double real = 0;     // of a float or complex
  double imaginary = 0;
  std::string text;                // digits of an int; text in UTF-8; bytes; an object's type
  std::vector<PythonValue> items;  // of a dict: key, value, key, value, ...
};

// Levels of nesting that are read.
constexpr int kMaxPythonDepth = 200;

// Python's `==`: 1 is True is 1.0 (exactly, at any size), a list is no tuple, a set is a frozenset,
// nan is nothing. With a tolerance above 0 numbers that are no bool may differ by it, absolutely or
// relative to the expected one; not so elements of sets and keys.
bool is_equal(const PythonValue& returned, const PythonValue& expected, double tolerance);

// bool(value).
bool is_true(const PythonValue& value);

// Whether Python takes it as an element of a set.
bool is_hashable(const PythonValue& value);

// Whether a nan is in it, so that it equals nothing.
bool has_nan(const PythonValue& value);

// The form of sandbox/programs.h, and back; nothing where it is not that or is nested too deep.
std::string to_wire(const PythonValue& value);
std::optional<PythonValue> from_wire(std::string_view wire);

// As repr() has it, near enough for people.
std::string to_python(const PythonValue& value);

// For programs that have no such values: lists for tuples and, of arguments, for sets. Nothing for
// what JSON lacks: bytes, keys that are no texts, nan, infinity, complex numbers.
std::optional<PythonValue> to_json_value(const PythonValue& value, bool is_argument);
std::optional<std::string> to_json(const PythonValue& value, bool is_argument);
std::optional<PythonValue> from_json(std::string_view json);

}  // namespace gradus::rewards::code
