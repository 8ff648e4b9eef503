// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/status.h"

// One JSON document of a user, as the inspect commands read it.
namespace gradus::cli {

// The whole of a file, or of standard input for "-". NotFound if it cannot be opened.
Result<std::string> read_input(const std::string& path);
// How messages name the same: the path, or "standard input".
std::string input_name(const std::string& path);

// Python writes NaN and Infinity, which JSON lacks; they are read as texts, so that they can be
// named in a message. InvalidArgument if `text` is not JSON.
Result<nlohmann::ordered_json> parse_input(const std::string& text, const std::string& where);

// A value as it stands in a message, cut at 60 characters.
std::string shown(const nlohmann::ordered_json& value);

// InvalidArgument that begins with `where` unless it is a finite number.
Result<double> finite_number(const nlohmann::ordered_json& value, const std::string& where);

}  // namespace gradus::cli
