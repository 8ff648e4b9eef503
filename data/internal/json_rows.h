// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "data/dataset.h"

// What the readers of data sets share: JSON lines of several files with the place of every bad one,
// and the fields of a row.
namespace gradus::data {

using Json = nlohmann::ordered_json;

// Reads the rows of `files` in order, at most `max_rows` (0: all), blank lines skipped: `resize(n)`
// announces that there are now n of them, then `fill(index, object, file, line)` is called for the
// new ones, from several threads. All bad rows are found before it returns; the message lists the
// first 10 as `file:line: what fill says` and counts the rest. NotFound for a file that cannot be
// opened, InvalidArgument for bad rows and for no rows at all.
Status read_json_rows(std::span<const std::string> files, int64_t max_rows,
                      const std::function<void(int64_t)>& resize,
                      const std::function<Status(int64_t index, Json object,
                                                 const std::string& file, int64_t line)>& fill);

// The value of `key`, taken out of `object`; null when absent.
Json take(Json& object, const char* key);

// Takes a string, if there is one; InvalidArgument for any other value.
Status read_text(Json& object, const char* key, std::string& text);

// Reads a list of {"role", "content"}; errors name `key`.
Status read_messages(const Json& list, const char* key, std::vector<Message>& messages);

}  // namespace gradus::data
