// SPDX-License-Identifier: Apache-2.0
#include "records/rollout_dump.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/atomic_file.h"
#include "records/internal/durable_file.h"
#include "records/internal/json_text.h"

namespace gradus::records {
namespace {

using Json = nlohmann::json;

void append_text_field(std::string& line, const char* name, std::string_view text) {
  line += fmt::format(", \"{}\": ", name);
  internal::append_json_string(line, text);
}

void append_number_field(std::string& line, const char* name, double value) {
  line += fmt::format(", \"{}\": ", name);
  internal::append_json_number(line, value);
}

void append_parts(std::string& line, const std::vector<RewardPartRecord>& parts) {
  line += ", \"parts\": [";
  const char* separator = "";
  for (const RewardPartRecord& part : parts) {
    line += separator;
    line += "{\"name\": ";
    internal::append_json_string(line, part.name);
    append_number_field(line, "raw", part.raw);
    append_number_field(line, "weight", part.weight);
    append_number_field(line, "weighted", part.weighted);
    append_text_field(line, "status", part.status);
    append_text_field(line, "detail", part.detail);
    line += "}";
    separator = ", ";
  }
  line += "]";
}

void append_ids(std::string& line, const char* name, const int32_t* begin, const int32_t* end) {
  line += fmt::format(", \"{}\": [{}]", name, fmt::join(begin, end, ", "));
}

void append_floats(std::string& line, const char* name, const std::vector<float>& values) {
  line += fmt::format(", \"{}\": [", name);
  const char* separator = "";
  for (const float value : values) {
    line += separator;
    internal::append_json_number(line, value);
    separator = ", ";
  }
  line += "]";
}

// Nothing if one version sampled all.
void append_segments(std::string& line, const std::vector<data::Segment>& segments) {
  const char* separator = ", \"segments\": [";
  for (const data::Segment& segment : segments) {
    line += fmt::format("{}[{}, {}, {}, \"{:016x}\"]", separator, segment.begin, segment.end,
                        segment.policy_version, segment.weights_hash);
    separator = ", ";
  }
  if (!segments.empty()) line += "]";
}

// Nothing if no tool was called.
void append_observations(std::string& line, const std::vector<data::Observation>& observations) {
  const char* separator = ", \"observations\": [";
  for (const data::Observation& observation : observations) {
    line += fmt::format("{}[{}, {}, ", separator, observation.begin, observation.end);
    internal::append_json_string(line, observation.tool);
    line += fmt::format(", \"{}\", {}, ", data::tool_status_name(observation.status),
                        observation.is_cut);
    internal::append_json_string(line, observation.text);
    line += "]";
    separator = ", ";
  }
  if (!observations.empty()) line += "]";
}

double as_number(const Json& value) {
  if (value.is_number()) return value.get<double>();
  const auto text = value.get<std::string>();
  if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (text == "Infinity") return std::numeric_limits<double>::infinity();
  if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  throw std::invalid_argument("a number is '" + text + "'");
}

// A double that prints as the shortest text of a float is rounded to that float, and so to the same
// bits.
std::vector<float> as_floats(const Json& values) {
  std::vector<float> floats;
  floats.reserve(values.size());
  for (const Json& value : values) floats.push_back(static_cast<float>(as_number(value)));
  return floats;
}

data::FinishReason parse_finish_reason(const std::string& name) {
  for (const auto reason :
       {data::FinishReason::kStop, data::FinishReason::kLength, data::FinishReason::kCancelled,
        data::FinishReason::kInterrupted, data::FinishReason::kToolLimit}) {
    if (name == data::finish_reason_name(reason)) return reason;
  }
  throw std::invalid_argument("finish_reason is '" + name +
                              "'; expected stop, length, cancelled, interrupted or tool_limit");
}

data::ToolStatus parse_tool_status(const std::string& name) {
  for (const auto status : {data::ToolStatus::kOk, data::ToolStatus::kInvalid,
                            data::ToolStatus::kError, data::ToolStatus::kTimeout}) {
    if (name == data::tool_status_name(status)) return status;
  }
  throw std::invalid_argument("the status of an observation is '" + name +
                              "'; expected ok, invalid, error or timeout");
}

// Throws what nlohmann or the functions above throw.
RolloutRecord record_of(const Json& row) {
  RolloutRecord record;
  record.step = row.at("step").get<int64_t>();
  record.data_position = row.value("data_position", uint64_t{0});
  record.prompt = row.at("prompt").get<std::string>();
  record.task = row.at("task").get<std::string>();
  record.answer = row.at("answer").get<std::string>();
  record.reward = as_number(row.at("reward"));
  record.advantage = as_number(row.at("advantage"));
  for (const Json& part : row.at("parts")) {
    record.parts.push_back({part.at("name").get<std::string>(), as_number(part.at("raw")),
                            as_number(part.at("weight")), as_number(part.at("weighted")),
                            part.at("status").get<std::string>(),
                            part.at("detail").get<std::string>()});
  }
  data::Trajectory& trajectory = record.trajectory;
  trajectory.id = {row.at("prompt_id").get<uint64_t>(), row.at("sample_index").get<int32_t>()};
  trajectory.text = row.at("response").get<std::string>();
  trajectory.finish_reason = parse_finish_reason(row.at("finish_reason").get<std::string>());
  trajectory.policy_version = row.at("policy_version").get<uint64_t>();
  trajectory.weights_hash = std::stoull(row.at("weights_hash").get<std::string>(), nullptr, 16);
  trajectory.token_ids = row.at("prompt_ids").get<std::vector<int32_t>>();
  trajectory.prompt_length = static_cast<int64_t>(trajectory.token_ids.size());
  const auto ids = row.at("ids").get<std::vector<int32_t>>();
  trajectory.token_ids.insert(trajectory.token_ids.end(), ids.begin(), ids.end());
  trajectory.behavior_logprobs = as_floats(row.at("logprobs"));
  trajectory.sampling_logprobs = row.contains("sampling_logprobs")
                                     ? as_floats(row.at("sampling_logprobs"))
                                     : trajectory.behavior_logprobs;
  if (row.contains("values")) record.values = as_floats(row.at("values"));
  if (row.contains("segments")) {
    for (const Json& segment : row.at("segments")) {
      trajectory.segments.push_back({segment.at(0).get<int64_t>(), segment.at(1).get<int64_t>(),
                                     segment.at(2).get<uint64_t>(),
                                     std::stoull(segment.at(3).get<std::string>(), nullptr, 16)});
    }
  }
  if (row.contains("observations")) {
    for (const Json& observation : row.at("observations")) {
      trajectory.observations.push_back(
          {observation.at(0).get<int64_t>(), observation.at(1).get<int64_t>(),
           observation.at(2).get<std::string>(),
           parse_tool_status(observation.at(3).get<std::string>()), observation.at(4).get<bool>(),
           observation.at(5).get<std::string>()});
    }
  }
  return record;
}

}  // namespace

std::string rollout_line(const RolloutRecord& record) {
  const data::Trajectory& trajectory = record.trajectory;
  std::string line = fmt::format(
      "{{\"step\": {}, \"data_position\": {}, \"prompt_id\": {}, \"sample_index\": {}", record.step,
      record.data_position, trajectory.id.prompt_id, trajectory.id.sample_index);
  append_text_field(line, "task", record.task);
  append_text_field(line, "prompt", record.prompt);
  append_text_field(line, "response", trajectory.text);
  append_text_field(line, "answer", record.answer);
  append_number_field(line, "reward", record.reward);
  append_number_field(line, "advantage", record.advantage);
  append_parts(line, record.parts);
  append_text_field(line, "finish_reason", data::finish_reason_name(trajectory.finish_reason));
  line += fmt::format(", \"policy_version\": {}, \"weights_hash\": \"{:016x}\"",
                      trajectory.policy_version, trajectory.weights_hash);
  const int32_t* ids = trajectory.token_ids.data();
  append_ids(line, "prompt_ids", ids, ids + trajectory.prompt_length);
  append_ids(line, "ids", ids + trajectory.prompt_length, ids + trajectory.token_ids.size());
  append_floats(line, "logprobs", trajectory.behavior_logprobs);
  if (trajectory.sampling_logprobs != trajectory.behavior_logprobs) {
    append_floats(line, "sampling_logprobs", trajectory.sampling_logprobs);
  }
  append_segments(line, trajectory.segments);
  append_observations(line, trajectory.observations);
  if (!record.values.empty()) append_floats(line, "values", record.values);
  return line + "}";
}

Result<RolloutRecord> parse_rollout_line(std::string_view line) {
  RolloutRecord record;
  try {
    record = record_of(Json::parse(line));
  } catch (const std::exception& error) {
    return invalid_argument("not a rollout: {}", error.what());
  }
  GRADUS_RETURN_IF_ERROR(data::validate(record.trajectory));
  const size_t num_tokens = record.trajectory.behavior_logprobs.size();
  if (!record.values.empty() && record.values.size() != num_tokens) {
    return invalid_argument("not a rollout: {} values for {} response tokens", record.values.size(),
                            num_tokens);
  }
  return record;
}

Status write_rollouts(const std::string& path, const std::vector<RolloutRecord>& records) {
  std::string text;
  for (const RolloutRecord& record : records) {
    text += rollout_line(record);
    text += '\n';
  }
  return write_file_atomically(path, text);
}

Result<std::vector<RolloutRecord>> read_rollouts(const std::string& path) {
  const Result<std::string> text = internal::read_file(path);
  GRADUS_RETURN_IF_ERROR(text.status());
  std::vector<RolloutRecord> records;
  std::string_view rest = *text;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    if (end > 0) {
      Result<RolloutRecord> record = parse_rollout_line(rest.substr(0, end));
      if (!record.ok()) return record.status().with_prefix(fmt::format("{}:{}", path, number));
      records.push_back(std::move(*record));
    }
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return records;
}

std::vector<int64_t> rollout_steps(const std::string& folder) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    int64_t step = 0;
    if (!name.starts_with("step_")) continue;
    const auto parsed = std::from_chars(name.data() + 5, name.data() + name.size(), step);
    if (name == fmt::format("step_{}.jsonl", step) && parsed.ec == std::errc())
      steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

}  // namespace gradus::records
