// SPDX-License-Identifier: Apache-2.0
#include "data/internal/json_rows.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <optional>
#include <set>

#include "common/parallel.h"
#include "common/strings.h"

namespace gradus::data {
namespace {

constexpr int64_t kLinesPerChunk = 1024;
constexpr size_t kMaxListedErrors = 10;

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

// One line; the error has no place yet.
Result<Json> parse_line(const std::string& line) {
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
  } catch (const nlohmann::json::out_of_range& error) {
    const std::string_view what = error.what();  // ends with the number, quoted
    return invalid_argument("holds the number {}, which no double can hold; write it as text",
                            what.substr(std::min(what.find('\''), what.size())));
  }
  if (!object.is_object()) {
    return invalid_argument("is {}; expected one JSON object a line", object.type_name());
  }
  if (duplicates.first()) {
    return invalid_argument("key '{}' stands twice in one object; keep one of them",
                            *duplicates.first());
  }
  return object;
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

// The value of `key`, taken out of `object`; null when absent.
Json take(Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) return nullptr;
  Json value = std::move(*found);
  object.erase(found);
  return value;
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

Status read_json_rows(std::span<const std::string> files, int64_t max_rows,
                      const std::function<void(int64_t)>& resize,
                      const std::function<Status(int64_t index, Json object,
                                                 const std::string& file, int64_t line)>& fill) {
  if (files.empty()) return invalid_argument("data: no files; name at least one");
  const int64_t limit = max_rows > 0 ? max_rows : std::numeric_limits<int64_t>::max();
  std::vector<std::string> listed;
  int64_t num_bad = 0, num_seen = 0;
  LineReader reader(files);
  while (num_seen < limit) {
    auto lines = reader.next(std::min(kLinesPerChunk, limit - num_seen));
    if (!lines.ok()) return lines.status();
    const int64_t count = static_cast<int64_t>(lines->size());
    if (count == 0) break;
    resize(num_seen + count);
    std::vector<Status> statuses(lines->size());
    parallel_for(count, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto& [file, number, text] = (*lines)[i];
        Result<Json> object = parse_line(text);
        statuses[i] =
            object.ok() ? fill(num_seen + i, std::move(*object), *file, number) : object.status();
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      if (statuses[i].ok()) continue;
      ++num_bad;
      if (listed.size() < kMaxListedErrors) {
        const LineReader::Line& line = (*lines)[i];
        listed.push_back(
            statuses[i].with_prefix(fmt::format("{}:{}", *line.file, line.number)).message());
      }
    }
    num_seen += count;
  }
  if (num_bad > 0) return bad_rows(listed, num_bad, num_seen);
  if (num_seen == 0) {
    return invalid_argument("{}: no rows; a data set needs at least one", join(files, ", "));
  }
  return {};
}

}  // namespace gradus::data
