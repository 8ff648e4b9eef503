// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "common/status.h"

namespace gradus::data::internal {

// Reads the fields of one component of a tokenizer.json, such as {"type": "Split", ...}. The first
// problem is kept, and the reads after it give defaults: check status() once at the end.
class ComponentReader {
 public:
  // `where` leads to the component: "dir/tokenizer.json: pre_tokenizer.pretokenizers[0]".
  ComponentReader(const nlohmann::json& json, std::string where);

  const Status& status() const { return status_; }
  const std::string& where() const { return where_; }
  const std::string& type() const { return type_; }
  bool has(std::string_view key) const;  // present and not null

  // Absent or null gives `fallback`; without one it is an error.
  std::string text(std::string_view key, std::optional<std::string> fallback = std::nullopt);
  bool flag(std::string_view key, std::optional<bool> fallback = std::nullopt);
  int64_t count(std::string_view key, std::optional<int64_t> fallback = std::nullopt);

  // A "pattern" field, {"String": s} or {"Regex": s}.
  struct PatternField {
    bool is_regex = false;
    std::string text;
  };
  PatternField pattern();

  // Status naming the type and what is served in its place.
  Status unsupported(std::string_view served) const;
  void fail(Status status);

 private:
  const nlohmann::json* find(std::string_view key) const;
  const nlohmann::json& json_;
  std::string where_;
  std::string type_;
  Status status_;
};

// Calls `read(component, where)` for a component, for each of a "Sequence" (whose list is under
// `list_key`), or not at all for null.
template <class Read>
Status for_each_component(const nlohmann::json& json, std::string_view list_key,
                          const std::string& where, const Read& read) {
  if (json.is_null()) return {};
  ComponentReader component(json, where);
  GRADUS_RETURN_IF_ERROR(component.status());
  if (component.type() != "Sequence") return read(json, where);
  const auto list = json.find(std::string(list_key));
  if (list == json.end() || !list->is_array()) {
    return invalid_argument("{}: no list '{}' in the Sequence", where, list_key);
  }
  for (size_t i = 0; i < list->size(); ++i) {
    GRADUS_RETURN_IF_ERROR(for_each_component((*list)[i], list_key,
                                              fmt::format("{}.{}[{}]", where, list_key, i), read));
  }
  return {};
}

}  // namespace gradus::data::internal
