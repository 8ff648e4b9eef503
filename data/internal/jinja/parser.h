// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "data/internal/jinja/ast.h"

namespace gradus::data::jinja {

// The tree of a template, names resolved. Throws TemplateError with its line.
std::shared_ptr<const Template> parse_template(std::string source, std::string name);

// Gives every name its slot, by jinja's rules of scope: a loop, macro, `with`, `set` block, filter
// block and call block have a scope of their own, `if` has none; an assignment stays within its
// scope; a name that a scope assigns starts with the outer variable's value. Also finds filters and
// tests. (scope.cpp)
void resolve(Template& parsed);

}  // namespace gradus::data::jinja
