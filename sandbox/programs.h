// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "sandbox/sandbox.h"

// Runs for whole programs and for single functions, in Python and C++.
//
// A function call is a JSON list of arguments; the run's `result` is the returned value as JSON,
// empty if the function did not return. It comes over a descriptor of its own, so what the program
// prints is no answer. `function` may be "f", "Class.f", or "f" of a class Solution.
namespace gradus::sandbox {

Run python_program(std::string source, std::string stdin_text);

// Arguments are what json.loads gives. A result that is no JSON (a set) is an error of the program.
Run python_call(std::string source, std::string_view function, std::string_view arguments_json);

// The same with values of Python that JSON lacks. Arguments and result are JSON in which an object
// of one member stands for a value: {"t": [..]} a tuple, {"s": [..]} a set, {"z": [..]} a
// frozenset, {"d": [[key, value], ..]} a dict, {"i": "12.."} a large int, {"f": "nan"} (also "inf",
// "-inf") a float, {"c": [real, imaginary]} a complex number, {"b": "00ff"} bytes. In the result
// subclasses of these are what they hold, a Decimal or Fraction is the int or float that it equals,
// and {"o": ["Match", true]} stands for a value of any other type, with what bool() says of it.
Run python_value_call(std::string source, std::string_view function,
                      std::string_view arguments_json);

// The compilation, itself in the sandbox: exit code 0 and the program in `kept`, or messages in
// `stderr_text`. g++, C++20, -O2.
Run cpp_compilation(std::string source);

// The same with a main that makes one call. Arguments and result may be of bool, numbers, char,
// std::string, vector, array, pair, tuple, optional, set and map of string keys; of a function that
// returns nothing the result is its first argument.
Run cpp_call_compilation(std::string source, std::string_view function);

// `binary` is what a compilation kept.
Run cpp_program(std::string binary, std::string stdin_text);
Run cpp_call(std::string binary, std::string_view arguments_json);

}  // namespace gradus::sandbox
