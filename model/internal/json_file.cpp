// SPDX-License-Identifier: Apache-2.0
#include "model/internal/json_file.h"

#include <optional>
#include <set>

#include "common/mapped_file.h"
#include "common/strings.h"

namespace gradus::model {
namespace {

// "[json.exception.parse_error.101] parse error at line 2, column 5: ..." without nlohmann's own
// tag.
std::string_view without_tag(std::string_view message) {
  const size_t end = message.find("] ");
  return end == std::string_view::npos ? message : message.substr(end + 2);
}

}  // namespace

Result<nlohmann::json> parse_json_object(std::string_view text, const std::string& where,
                                         std::vector<JsonKey>* keys) {
  using nlohmann::json;
  std::vector<std::set<std::string>> open_objects;  // the keys seen in each
  std::optional<std::string> duplicate;
  const auto callback = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second && !duplicate) duplicate = key;
      if (keys != nullptr) keys->push_back({open_objects.size(), key});
    }
    return true;
  };
  if (const auto offset = first_invalid_utf8(text)) {
    return data_loss("{}: invalid UTF-8 at byte {}; JSON is UTF-8", where, *offset);
  }
  json object;
  try {
    object = json::parse(text, callback);
  } catch (const json::exception& error) {
    return data_loss("{}: not valid JSON: {}", where, without_tag(error.what()));
  }
  if (duplicate) return data_loss("{}: duplicate key '{}'", where, *duplicate);
  if (!object.is_object()) {
    return data_loss("{}: must be a JSON object, got {}", where, object.type_name());
  }
  return object;
}

Result<nlohmann::json> read_json_object(const std::string& path) {
  const Result<MappedFile> file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  const auto bytes = file->bytes();
  return parse_json_object({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

}  // namespace gradus::model
