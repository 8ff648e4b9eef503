// SPDX-License-Identifier: Apache-2.0
#include "data/dataset.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/rng.h"
#include "data/internal/json_rows.h"

namespace gradus::data {
namespace {

constexpr const char* kPromptForms =
    "a string or a list of {\"role\", \"content\"} objects with string values";

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

Status read_prompt(Json& object, Row& row) {
  const bool has_prompt = object.contains("prompt");
  if (has_prompt && object.contains("messages")) {
    return invalid_argument(
        "prompt: stands beside 'messages', which is another name for it; keep one");
  }
  const char* key = has_prompt ? "prompt" : "messages";
  const Json value = take(object, key);
  if (value.is_null()) return invalid_argument("prompt: is missing; expected {}", kPromptForms);
  if (value.is_string()) {
    row.text = value.get<std::string>();
  } else if (value.is_array()) {
    GRADUS_RETURN_IF_ERROR(read_messages(value, key, row.messages));
  } else {
    return invalid_argument("{}: is {}; expected {}", key, value.type_name(), kPromptForms);
  }
  GRADUS_RETURN_IF_ERROR(read_text(object, "response", row.response));
  const bool ends_in_answer = !row.messages.empty() && row.messages.back().role == "assistant";
  if (!has_prompt && ends_in_answer && row.response.empty()) {
    row.response = std::move(row.messages.back().content);
    row.messages.pop_back();
  }
  if (row.text.empty() && row.messages.empty()) {
    return invalid_argument("{}: is empty; expected {}", key, kPromptForms);
  }
  return {};
}

Status read_ground_truth(Json& object, const DatasetOptions& options, Row& row) {
  Json rewards = take(object, "reward_model");
  Json truth;
  if (!rewards.is_null()) {
    if (!rewards.is_object()) {
      return invalid_argument("reward_model: is {}; expected an object with 'ground_truth'",
                              rewards.type_name());
    }
    GRADUS_RETURN_IF_ERROR(
        read_text(rewards, "style", row.reward_style).with_prefix("reward_model"));
    truth = take(rewards, "ground_truth");
    if (!rewards.empty()) object["reward_model"] = std::move(rewards);
  }
  for (const char* key : {"ground_truth", "answer", "label"}) {
    if (truth.is_null()) truth = take(object, key);
  }
  if (!truth.is_null()) row.ground_truth = text_of(truth);
  if (row.ground_truth.empty() && options.require_ground_truth) {
    return invalid_argument(
        "reward_model.ground_truth: is missing; expected it, or a flat ground_truth, answer or "
        "label");
  }
  return {};
}

Status fill_row(Json object, const DatasetOptions& options, Row& row) {
  row.data_source = options.default_data_source;
  GRADUS_RETURN_IF_ERROR(read_text(object, "data_source", row.data_source));
  if (row.data_source.empty()) {
    return invalid_argument("data_source: is missing; expected a string that names the task");
  }
  GRADUS_RETURN_IF_ERROR(read_prompt(object, row));
  GRADUS_RETURN_IF_ERROR(read_text(object, "ability", row.ability));
  GRADUS_RETURN_IF_ERROR(read_ground_truth(object, options, row));
  if (row.response.empty() && options.require_response) {
    return invalid_argument(
        "response: is missing; supervised training expects a string, or messages that end with an "
        "assistant turn");
  }
  const Json extra = take(object, "extra_info");
  if (!extra.is_null() && !extra.is_object()) {
    return invalid_argument("extra_info: is {}; expected an object", extra.type_name());
  }
  if (!extra.is_null()) row.extra_info = extra.dump();
  row.other_keys = object.dump();
  return {};
}

}  // namespace

std::string place_of(const Row& row) {
  return row.source_file.empty() ? fmt::format("{} row {}", row.data_source, row.line)
                                 : fmt::format("{}:{}", row.source_file, row.line);
}

std::map<std::string, std::string> metadata_of(const Row& row) {
  std::map<std::string, std::string> metadata;
  for (const std::string* text : {&row.extra_info, &row.other_keys}) {
    const Json object = Json::parse(*text);
    for (const auto& [key, value] : object.items()) metadata.emplace(key, text_of(value));
  }
  return metadata;
}

Json row_to_json(const Row& row) {
  Json object;
  object["data_source"] = row.data_source;
  if (row.messages.empty()) {
    object["prompt"] = row.text;
  } else {
    for (const Message& message : row.messages) {
      object["prompt"].push_back({{"role", message.role}, {"content", message.content}});
    }
  }
  if (!row.ability.empty()) object["ability"] = row.ability;
  if (!row.reward_style.empty()) object["reward_model"]["style"] = row.reward_style;
  if (!row.ground_truth.empty()) object["reward_model"]["ground_truth"] = row.ground_truth;
  if (!row.response.empty()) object["response"] = row.response;
  object["extra_info"] = Json::parse(row.extra_info);
  const Json others = Json::parse(row.other_keys);
  for (const auto& [key, value] : others.items()) {
    if (object.contains(key)) {
      object[key].update(value);  // further members of reward_model
    } else {
      object[key] = value;
    }
  }
  return object;
}

Result<std::vector<Row>> load_rows(std::span<const std::string> files,
                                   const DatasetOptions& options) {
  std::vector<Row> rows;
  const Status status = read_json_rows(
      files, options.max_rows, [&](int64_t count) { rows.resize(static_cast<size_t>(count)); },
      [&](int64_t index, Json object, const std::string& file, int64_t line) {
        Row& row = rows[static_cast<size_t>(index)];
        row.source_file = file;
        row.line = line;
        return fill_row(std::move(object), options, row);
      });
  if (!status.ok()) return status;
  return rows;
}

Result<OverlongSplit> split_overlong(std::span<const Row> rows,
                                     const std::function<Result<int64_t>(const Row&)>& count_tokens,
                                     int64_t max_tokens, OverlongPolicy policy) {
  OverlongSplit split;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto num_tokens = count_tokens(rows[i]);
    if (!num_tokens.ok()) return num_tokens.status().with_prefix(place_of(rows[i]));
    split.longest_tokens = std::max(split.longest_tokens, *num_tokens);
    if (*num_tokens <= max_tokens) {
      split.kept.push_back(static_cast<int64_t>(i));
    } else if (policy == OverlongPolicy::kFilter) {
      ++split.num_dropped;
    } else {
      return invalid_argument(
          "{}: the prompt has {} tokens, at most {} are allowed; shorten it, allow longer prompts, "
          "or "
          "have over-long prompts filtered",
          place_of(rows[i]), *num_tokens, max_tokens);
    }
  }
  if (split.kept.empty() && !rows.empty()) {
    return invalid_argument(
        "data: all {} prompts have more than {} tokens (the longest {}); allow longer prompts",
        rows.size(), max_tokens, split.longest_tokens);
  }
  return split;
}

DataOrder::DataOrder(int64_t num_rows, uint64_t seed, bool shuffle)
    : num_rows_(static_cast<uint64_t>(num_rows)), seed_(seed), shuffle_(shuffle) {
  GRADUS_CHECK(num_rows >= 1 && num_rows < (int64_t{1} << 32),
               fmt::format("DataOrder: num_rows {} is not in [1, 2^32)", num_rows));
}

int64_t DataOrder::row_at(uint64_t position) {
  const uint64_t index = position % num_rows_;
  if (!shuffle_) return static_cast<int64_t>(index);
  const uint64_t epoch = epoch_of(position);
  if (epoch != cached_epoch_) {
    permutation_.resize(num_rows_);
    for (uint64_t i = 0; i < num_rows_; ++i) permutation_[i] = static_cast<uint32_t>(i);
    RngSequence random(hash64({seed_, epoch}), RngStream::kShuffle);
    for (uint64_t i = num_rows_ - 1; i > 0; --i) {
      std::swap(permutation_[i], permutation_[random.below(i + 1)]);
    }
    cached_epoch_ = epoch;
  }
  return permutation_[index];
}

}  // namespace gradus::data
