// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "data/data_config.h"
#include "data/dataset.h"
#include "data/tasks/task.h"

// Preference data as JSON lines with the names that TRL uses. One row:
//
//   {"prompt": "What is 3 + 4?", "chosen": "7", "rejected": "8", "margin": 0.5}
//
// `prompt` is a string or a chat; a response is a string or messages: its one assistant turn, alone
// or after the prompt's. Without `prompt` the two responses are whole chats that begin alike. The
// margin is optional (0), other keys are left unread.
namespace gradus::data {

struct PreferenceRow {
  Row prompt;  // text or messages, with the row's place
  std::string chosen;
  std::string rejected;  // another text than chosen
  double margin = 0;     // by how much chosen should win, in units of the score
  bool operator==(const PreferenceRow&) const = default;
};

// Reads `files` as load_rows does, with errors of the same form.
Result<std::vector<PreferenceRow>> load_preferences(std::span<const std::string> files,
                                                    int64_t max_rows);

// The row in the names above; reading it back gives the same row but for its place.
nlohmann::ordered_json preference_to_json(const PreferenceRow& row);

// Row `index` of a procedural task with its reference response as chosen, and that of the first
// later row of another response as rejected. InvalidArgument if a thousand rows give none.
Result<PreferenceRow> make_preference(const Task& task, uint64_t seed, uint64_t index);

// The pairs that a `train` or `eval` section names, at most `max_rows` of them (0: all): those of
// its files, or rows 0, 1, ... of its task by make_preference.
Result<std::vector<PreferenceRow>> load_preference_source(const SourceConfig& source,
                                                          int64_t max_rows = 0);

}  // namespace gradus::data
