// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "rewards/code/code_tests.h"

// Tests that a data set has as Python's assert statements: those of MBPP, and the function check()
// of HumanEval. They are read, not run: each becomes a call and the value that it should return,
// so what is expected stays outside the sandbox and no `__eq__` of the program is asked.
namespace gradus::rewards::code {

// Reads `assert f(ARGUMENTS) == VALUE`, `assert f(..) is True` (or False, None), `assert f(..)`
// (any true value), `assert not f(..)`, each with or without a message. ARGUMENTS and VALUE are
// literals, as python_literal.h reads them.
// `function` is what `candidate` stands for; empty: the name that is called is the function.
// Lines that test nothing (def check, METADATA, imports, comments, `assert True`) are passed over.
// InvalidArgument, with the line, for whatever else: a test left out would be a weaker test.
Result<CodeTests> parse_asserts(std::string_view python, std::string_view function);

}  // namespace gradus::rewards::code
