// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "common/status.h"

// JSON Schema (json-schema.org, draft 2020-12): the validation keywords of a schema that stands
// alone. Not read: unevaluatedItems, unevaluatedProperties, $dynamicRef, references to other
// documents; a schema that has one is refused rather than half checked. `format` is an annotation,
// as the draft has it by default.
namespace gradus::rewards {

class JsonSchema {
 public:
  // InvalidArgument names the place in the schema, as a JSON pointer.
  static Result<JsonSchema> parse(const std::string& text);
  JsonSchema(JsonSchema&&) noexcept;
  JsonSchema& operator=(JsonSchema&&) noexcept;
  ~JsonSchema();

  // What is wrong with a value, with its place, "/items/3: is a string; expected integer"; empty if
  // nothing is. Thread-safe.
  std::string problem_with(const nlohmann::json& value) const;

 private:
  struct Compiled;
  explicit JsonSchema(std::unique_ptr<Compiled> compiled);
  std::unique_ptr<Compiled> compiled_;
};

// Reads a text of at most 1 MiB that is one JSON value of at most 200 levels; the problem else.
Result<nlohmann::json> read_json_text(std::string_view text);

}  // namespace gradus::rewards
