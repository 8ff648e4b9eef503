// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "data/internal/bert.h"
#include "data/internal/component.h"
#include "data/internal/pattern.h"

namespace gradus::data::internal {

// Reads the keys of a `Replace` component. `pattern` is set for a regular expression and null for a
// plain text. InvalidArgument for an empty text, or a '$' in what replaces a regular expression.
Status read_replace(ComponentReader& component, const std::string& where, std::string& text,
                    std::string& content, std::shared_ptr<const Pattern>& pattern);

// Appends `text` with every `pattern` in it exchanged for `content`.
void append_replaced(std::string& out, std::string_view text, std::string_view pattern,
                     std::string_view content);
Status append_replaced(std::string& out, std::string_view text, const Pattern& pattern,
                       std::string_view content);

// The "normalizer" of a tokenizer.json: NFC, Prepend, Replace, BertNormalizer and
// sequences of them. Immutable,
// thread-safe.
class Normalizer {
 public:
  static Result<Normalizer> parse(const nlohmann::json& json, const std::string& where);
  bool empty() const { return steps_.empty(); }
  // Sets `out` to the normalised `text`.
  Status apply(std::string_view text, std::string& out) const;

 private:
  struct Step {
    enum class Kind { kNfc, kPrepend, kReplaceText, kReplacePattern, kBert } kind;
    std::string text;     // what to prepend or to look for
    std::string content;  // what to put in its place
    std::shared_ptr<const Pattern> pattern;
    BertRules bert;
  };
  std::vector<Step> steps_;
};

}  // namespace gradus::data::internal
