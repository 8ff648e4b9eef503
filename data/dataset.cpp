// SPDX-License-Identifier: Apache-2.0
#include "data/dataset.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "common/parallel.h"
#include "common/rng.h"
#include "common/strings.h"

namespace gradus::data {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLinesPerChunk = 1024;
constexpr size_t kMaxListedErrors = 10;

constexpr const char* kPromptForms =
    "a string or a list of {\"role\", \"content\"} objects with string values";

// The value of `key`, taken out of `object`; null when absent.
Json take(Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) return nullptr;
  Json value = std::move(*found);
  object.erase(found);
  return value;
}

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

Status read_text(Json& object, const char* key, std::string& text) {
  const Json value = take(object, key);
  if (value.is_null()) return {};
  if (!value.is_string()) {
    return invalid_argument("{}: is {}; expected a string", key, value.type_name());
  }
  text = value.get<std::string>();
  return {};
}

Status read_messages(const Json& list, const char* key, std::vector<Message>& messages) {
  for (const Json& entry : list) {
    const std::string where = fmt::format("{}[{}]", key, messages.size());
    if (!entry.is_object()) {
      return invalid_argument("{}: is {}; expected {{\"role\", \"content\"}}", where,
                              entry.type_name());
    }
    for (const auto& [name, value] : entry.items()) {
      const bool is_known = name == "role" || name == "content";
      if (!is_known && !value.is_null()) {
        return invalid_argument("{}: unknown key '{}'; a message has only role and content", where,
                                name);
      }
    }
    for (const char* name : {"role", "content"}) {
      const auto found = entry.find(name);
      if (found == entry.end() || !found->is_string()) {
        return invalid_argument(
            "{}.{}: {}; expected a string", where, name,
            found == entry.end() ? "is missing" : fmt::format("is {}", found->type_name()));
      }
    }
    messages.push_back({entry["role"].get<std::string>(), entry["content"].get<std::string>()});
    if (messages.back().role.empty()) {
      return invalid_argument("{}.role: is empty; expected system, user or assistant", where);
    }
  }
  return {};
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

// Finds keys that an object has twice, of which a JSON parser keeps one without a word.
class DuplicateKeys {
 public:
  bool operator()(int, Json::parse_event_t event, const Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
        open_.emplace_back();
        break;
      case Json::parse_event_t::object_end:
        open_.pop_back();
        break;
      case Json::parse_event_t::key: {
        const std::string& key = parsed.get_ref<const std::string&>();
        if (!open_.back().insert(key).second && !first_) first_ = key;
        break;
      }
      case Json::parse_event_t::array_start:
      case Json::parse_event_t::array_end:
      case Json::parse_event_t::value:
        break;
    }
    return true;
  }
  const std::optional<std::string>& first() const { return first_; }

 private:
  std::vector<std::set<std::string>> open_;
  std::optional<std::string> first_;
};

// `line` is one row of `file`; the error has no place yet.
Status parse_row(const std::string& line, const DatasetOptions& options, Row& row) {
  if (const auto offset = first_invalid_utf8(line)) {
    return invalid_argument("invalid UTF-8 at byte {}; rows are JSON in UTF-8", *offset);
  }
  Json object;
  DuplicateKeys duplicates;
  try {
    object = Json::parse(line, std::ref(duplicates));
  } catch (const nlohmann::json::parse_error& error) {
    constexpr size_t kSnippetBytes = 24;
    const size_t end = std::min(error.byte, line.size());
    size_t begin = end > kSnippetBytes ? end - kSnippetBytes : 0;
    while (begin < end && (line[begin] & 0xC0) == 0x80) ++begin;  // not inside a character
    const bool is_array = trim(line).starts_with('[');
    return invalid_argument("not valid JSON at byte {}, after '{}'; {}", error.byte,
                            line.substr(begin, end - begin),
                            is_array ? "write one object a line instead of one array"
                                     : "expected one whole object a line");
  }
  if (!object.is_object()) {
    return invalid_argument("is {}; expected one JSON object a line", object.type_name());
  }
  if (duplicates.first()) {
    return invalid_argument("key '{}' stands twice in one object; keep one of them",
                            *duplicates.first());
  }
  return fill_row(std::move(object), options, row);
}

// Reads the lines of files in order, some at a time, with their numbers.
class LineReader {
 public:
  struct Line {
    const std::string* file;
    int64_t number;
    std::string text;
  };

  explicit LineReader(std::span<const std::string> files) : files_(files) {}

  // At most `count` further lines that are not blank; fewer only at the end of all files.
  Result<std::vector<Line>> next(int64_t count) {
    std::vector<Line> lines;
    while (static_cast<int64_t>(lines.size()) < count) {
      if (!stream_.is_open()) {
        if (file_index_ == files_.size()) break;
        GRADUS_RETURN_IF_ERROR(open());
      }
      std::string text;
      if (!std::getline(stream_, text)) {
        if (stream_.bad()) {
          return data_loss("{}: cannot read: {}", files_[file_index_], std::strerror(errno));
        }
        stream_.close();
        stream_.clear();
        ++file_index_;
        continue;
      }
      ++line_number_;
      if (!trim(text).empty())
        lines.push_back({&files_[file_index_], line_number_, std::move(text)});
    }
    return lines;
  }

 private:
  Status open() {
    const std::string& path = files_[file_index_];
    line_number_ = 0;
    stream_.open(path, std::ios::binary);
    if (!stream_) return not_found("{}: cannot open: {}", path, std::strerror(errno));
    char magic[4] = {};
    stream_.read(magic, sizeof(magic));
    if (stream_.gcount() == 4 && std::memcmp(magic, "PAR1", 4) == 0) {
      return invalid_argument(
          "{}: is a Parquet file; expected JSON lines: convert it with "
          "pandas.read_parquet(IN).to_json(OUT, orient='records', lines=True)",
          path);
    }
    // Opening a folder succeeds; reading it does not, and would look like an empty file.
    if (stream_.bad()) return not_found("{}: cannot read: {}", path, std::strerror(errno));
    stream_.clear();
    stream_.seekg(0);
    return {};
  }

  std::span<const std::string> files_;
  size_t file_index_ = 0;
  std::ifstream stream_;
  int64_t line_number_ = 0;
};

// One problem a line, as all commands report several at once.
Status bad_rows(const std::vector<std::string>& listed, int64_t num_bad, int64_t num_seen) {
  if (num_bad == 1) return {StatusCode::kInvalidArgument, listed.front()};
  const bool is_cut = num_bad > static_cast<int64_t>(listed.size());
  return invalid_argument("{}\ndata: {} of {} rows are bad{}", join(listed, "\n"), num_bad,
                          num_seen,
                          is_cut ? fmt::format(", the first {} are listed", listed.size()) : "");
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
  if (files.empty()) return invalid_argument("data: no files; name at least one");
  const int64_t limit =
      options.max_rows > 0 ? options.max_rows : std::numeric_limits<int64_t>::max();
  std::vector<Row> rows;
  std::vector<std::string> listed;
  int64_t num_bad = 0, num_seen = 0;
  LineReader reader(files);
  while (num_seen < limit) {
    auto lines = reader.next(std::min(kLinesPerChunk, limit - num_seen));
    if (!lines.ok()) return lines.status();
    const int64_t count = static_cast<int64_t>(lines->size());
    if (count == 0) break;
    num_seen += count;
    std::vector<Row> parsed(lines->size());
    std::vector<Status> statuses(lines->size());
    parallel_for(count, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto& [file, number, text] = (*lines)[i];
        parsed[i].source_file = *file;
        parsed[i].line = number;
        statuses[i] = parse_row(text, options, parsed[i]);
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      if (statuses[i].ok()) {
        if (num_bad == 0) rows.push_back(std::move(parsed[i]));
        continue;
      }
      ++num_bad;
      if (listed.size() < kMaxListedErrors) {
        listed.push_back(statuses[i].with_prefix(place_of(parsed[i])).message());
      }
    }
  }
  if (num_bad > 0) return bad_rows(listed, num_bad, num_seen);
  if (rows.empty()) {
    return invalid_argument("{}: no rows; a data set needs at least one", join(files, ", "));
  }
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
