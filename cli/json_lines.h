// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "common/status.h"

namespace gradus::cli {

// Reads JSON lines from `path` ("-": standard input) and calls `handle(row, line_number)` for each,
// the first line being 1. Blank lines are skipped. A line that is not a JSON object in valid UTF-8
// (lone surrogates count as invalid), and an error of `handle`, end with a status whose message
// starts with `path:line: `. NotFound when the file cannot be opened.
Status for_each_json_line(
    const std::string& path,
    const std::function<Status(const nlohmann::ordered_json& row, int64_t line_number)>& handle);

// Whether row["messages"] is a list of objects, as chat templates take it; InvalidArgument else.
Status check_messages(const nlohmann::ordered_json& row);

// Writes JSON lines to a file or to standard output.
class JsonLinesWriter {
 public:
  // `path` "-" is standard output.
  static Result<std::unique_ptr<JsonLinesWriter>> open(const std::string& path);
  virtual ~JsonLinesWriter() = default;
  // Unavailable when the disk is full.
  virtual Status write(const nlohmann::ordered_json& row) = 0;
  // Flushes; must be called at the end, since it reports what a destructor would swallow.
  virtual Status finish() = 0;
};

// A float as the shortest decimal that reads back to the same bits (a JSON number).
nlohmann::ordered_json exact_number(float value);

}  // namespace gradus::cli
