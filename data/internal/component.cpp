// SPDX-License-Identifier: Apache-2.0
#include "data/internal/component.h"

namespace gradus::data::internal {

ComponentReader::ComponentReader(const nlohmann::json& json, std::string where)
    : json_(json), where_(std::move(where)) {
  if (!json_.is_object()) {
    fail(invalid_argument("{}: expected an object with a 'type', got {}", where_,
                          json_.type_name()));
    return;
  }
  type_ = text("type");
}

const nlohmann::json* ComponentReader::find(std::string_view key) const {
  if (!json_.is_object()) return nullptr;
  const auto field = json_.find(std::string(key));
  return field == json_.end() || field->is_null() ? nullptr : &*field;
}

bool ComponentReader::has(std::string_view key) const { return find(key) != nullptr; }

void ComponentReader::fail(Status status) {
  if (status_.ok()) status_ = std::move(status);
}

std::string ComponentReader::text(std::string_view key, std::optional<std::string> fallback) {
  const nlohmann::json* field = find(key);
  if (field != nullptr && field->is_string()) return field->get<std::string>();
  if (field == nullptr && fallback) return *fallback;
  fail(invalid_argument("{}: '{}' {}; expected a text", where_, key,
                        field == nullptr ? "is missing" : std::string("is ") + field->type_name()));
  return {};
}

bool ComponentReader::flag(std::string_view key, std::optional<bool> fallback) {
  const nlohmann::json* field = find(key);
  if (field != nullptr && field->is_boolean()) return field->get<bool>();
  if (field == nullptr && fallback) return *fallback;
  fail(invalid_argument("{}: '{}' {}; expected true or false", where_, key,
                        field == nullptr ? "is missing" : std::string("is ") + field->type_name()));
  return false;
}

int64_t ComponentReader::count(std::string_view key, std::optional<int64_t> fallback) {
  const nlohmann::json* field = find(key);
  if (field != nullptr && field->is_number_unsigned()) return field->get<int64_t>();
  if (field == nullptr && fallback) return *fallback;
  fail(invalid_argument("{}: '{}' {}; expected a whole number >= 0", where_, key,
                        field == nullptr ? "is missing" : std::string("is ") + field->type_name()));
  return 0;
}

ComponentReader::PatternField ComponentReader::pattern() {
  const nlohmann::json* field = find("pattern");
  if (field != nullptr && field->is_object() && field->size() == 1) {
    const auto entry = field->begin();
    if (entry->is_string() && (entry.key() == "String" || entry.key() == "Regex")) {
      return {entry.key() == "Regex", entry->get<std::string>()};
    }
  }
  fail(invalid_argument(
      "{}: no readable 'pattern'; expected {{\"String\": ...}} or {{\"Regex\": ...}}", where_));
  return {};
}

Status ComponentReader::unsupported(std::string_view served) const {
  return invalid_argument("{}: unsupported type '{}'; served here: {}", where_, type_, served);
}

}  // namespace gradus::data::internal
