// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace gradus::model {

// A key as it stands in a text; `depth` is 1 in the outermost object.
struct JsonKey {
  size_t depth = 0;
  std::string name;
};

// Parses `text`, which must hold one JSON object without duplicate keys at any depth (nlohmann
// alone would let the last win). DataLoss with `where`, line and column, or the duplicate's name.
// The object is sorted by key, since nlohmann's ordered one takes quadratic time; `keys` gets their
// order in the text.
Result<nlohmann::json> parse_json_object(std::string_view text, const std::string& where,
                                         std::vector<JsonKey>* keys = nullptr);

// The same for a file. NotFound when it cannot be opened.
Result<nlohmann::json> read_json_object(const std::string& path);

}  // namespace gradus::model
