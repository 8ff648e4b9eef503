// SPDX-License-Identifier: Apache-2.0
#include "data/preferences.h"

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "data/internal/json_rows.h"

namespace gradus::data {
namespace {

constexpr const char* kSource = "preference";
constexpr uint64_t kMaxTries = 1000;

// A response before its prompt is known: its text, or the turns it was given as.
struct Response {
  const char* key;
  std::string text;
  std::vector<Message> messages;
};

Status read_response(Json& object, const char* key, Response& response) {
  response.key = key;
  const Json value = take(object, key);
  if (value.is_null()) {
    return invalid_argument(
        "{}: is missing; a preference row needs chosen and rejected, each a string or messages "
        "that end with an assistant turn",
        key);
  }
  if (value.is_array()) return read_messages(value, key, response.messages);
  if (!value.is_string()) {
    return invalid_argument("{}: is {}; expected a string or messages", key, value.type_name());
  }
  response.text = value.get<std::string>();
  return {};
}

Status read_prompt(Json& object, const Response& chosen, const Response& rejected, Row& row) {
  const Json value = take(object, "prompt");
  if (value.is_array()) {
    GRADUS_RETURN_IF_ERROR(read_messages(value, "prompt", row.messages));
  } else if (value.is_string()) {
    row.text = value.get<std::string>();
  } else if (!value.is_null()) {
    return invalid_argument("prompt: is {}; expected a string or messages", value.type_name());
  } else if (chosen.messages.size() < 2 || rejected.messages.size() < 2) {
    return invalid_argument(
        "prompt: is missing; expected a string or messages, or whole chats as chosen and rejected");
  } else {
    row.messages.assign(chosen.messages.begin(), chosen.messages.end() - 1);
  }
  if (row.text.empty() && row.messages.empty()) {
    return invalid_argument("prompt: is empty; expected a string or messages");
  }
  return {};
}

// The text of a response given as turns: what follows the prompt must be one assistant turn.
Status strip_prompt(const Row& prompt, Response& response) {
  std::vector<Message>& turns = response.messages;
  if (turns.empty()) {
    if (!response.text.empty()) return {};
    return invalid_argument("{}: is empty; expected at least one character", response.key);
  }
  const std::vector<Message>& before = prompt.messages;
  if (turns.size() > 1) {
    if (before.empty() || turns.size() <= before.size() ||
        !std::equal(before.begin(), before.end(), turns.begin())) {
      return invalid_argument(
          "{}: the prompt is no prefix of its {} messages; give the assistant turn alone, or the "
          "whole chat that begins with the prompt's messages",
          response.key, turns.size());
    }
    turns.erase(turns.begin(), turns.begin() + static_cast<int64_t>(before.size()));
  }
  if (turns.size() != 1 || turns[0].role != "assistant" || turns[0].content.empty()) {
    return invalid_argument(
        "{}: {} turn{} by '{}' after the prompt; expected one assistant turn that is not empty",
        response.key, turns.size(), turns.size() == 1 ? "" : "s, the first", turns[0].role);
  }
  response.text = std::move(turns[0].content);
  return {};
}

Status read_margin(Json& object, double& margin) {
  const Json value = take(object, "margin");
  if (value.is_null()) return {};
  if (!value.is_number() || !std::isfinite(value.get<double>())) {
    return invalid_argument("margin: is {}; expected a number", value.dump());
  }
  margin = value.get<double>();
  return {};
}

Status fill_preference(Json object, PreferenceRow& row) {
  row.prompt.data_source = kSource;
  GRADUS_RETURN_IF_ERROR(read_text(object, "data_source", row.prompt.data_source));
  Response chosen, rejected;
  GRADUS_RETURN_IF_ERROR(read_response(object, "chosen", chosen));
  GRADUS_RETURN_IF_ERROR(read_response(object, "rejected", rejected));
  GRADUS_RETURN_IF_ERROR(read_prompt(object, chosen, rejected, row.prompt));
  for (Response* response : {&chosen, &rejected}) {
    GRADUS_RETURN_IF_ERROR(strip_prompt(row.prompt, *response));
  }
  if (chosen.text == rejected.text) {
    return invalid_argument(
        "chosen and rejected are the same response; a pair must differ: drop the row");
  }
  row.chosen = std::move(chosen.text);
  row.rejected = std::move(rejected.text);
  return read_margin(object, row.margin);
}

}  // namespace

Result<std::vector<PreferenceRow>> load_preferences(std::span<const std::string> files,
                                                    int64_t max_rows) {
  std::vector<PreferenceRow> rows;
  const Status status = read_json_rows(
      files, max_rows, [&](int64_t count) { rows.resize(static_cast<size_t>(count)); },
      [&](int64_t index, Json object, const std::string& file, int64_t line) {
        PreferenceRow& row = rows[static_cast<size_t>(index)];
        row.prompt.source_file = file;
        row.prompt.line = line;
        return fill_preference(std::move(object), row);
      });
  if (!status.ok()) return status;
  return rows;
}

Json preference_to_json(const PreferenceRow& row) {
  Json object;
  object["data_source"] = row.prompt.data_source;
  if (row.prompt.messages.empty()) {
    object["prompt"] = row.prompt.text;
  } else {
    for (const Message& message : row.prompt.messages) {
      object["prompt"].push_back({{"role", message.role}, {"content", message.content}});
    }
  }
  object["chosen"] = row.chosen;
  object["rejected"] = row.rejected;
  if (row.margin != 0) object["margin"] = row.margin;
  return object;
}

Result<PreferenceRow> make_preference(const Task& task, uint64_t seed, uint64_t index) {
  Result<Row> row = task.row(seed, index);
  if (!row.ok()) return row.status();
  for (uint64_t i = 1; i <= kMaxTries; ++i) {
    Result<Row> other = task.row(seed, index + i);
    if (!other.ok()) return other.status();
    if (other->response == row->response) continue;
    PreferenceRow preference;
    preference.prompt.data_source = std::move(row->data_source);
    preference.prompt.messages = std::move(row->messages);
    preference.prompt.text = std::move(row->text);
    preference.chosen = std::move(row->response);
    preference.rejected = std::move(other->response);
    return preference;
  }
  return invalid_argument("{}: {} rows in turn have the same response; widen the task's dials",
                          row->data_source, kMaxTries);
}

Result<std::vector<PreferenceRow>> load_preference_source(const SourceConfig& source,
                                                          int64_t max_rows) {
  int64_t num_rows = source.num_rows;
  if (max_rows > 0) num_rows = num_rows > 0 ? std::min(num_rows, max_rows) : max_rows;
  if (source.task.empty()) return load_preferences(source.files, num_rows);
  const auto task = Task::create(source.task, source.task_options);
  if (!task.ok()) return task.status();
  std::vector<PreferenceRow> rows(static_cast<size_t>(num_rows));
  std::vector<Status> statuses(rows.size());
  parallel_for(num_rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      auto row =
          make_preference(*task, static_cast<uint64_t>(source.seed), static_cast<uint64_t>(i));
      if (row.ok()) {
        rows[i] = std::move(*row);
        rows[i].prompt.line = i + 1;
      } else {
        statuses[i] = row.status();
      }
    }
  });
  for (const Status& status : statuses) GRADUS_RETURN_IF_ERROR(status);
  return rows;
}

}  // namespace gradus::data
