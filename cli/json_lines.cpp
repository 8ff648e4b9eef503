// SPDX-License-Identifier: Apache-2.0
#include "cli/json_lines.h"

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>

#include "common/strings.h"

namespace gradus::cli {
namespace {

class FileWriter : public JsonLinesWriter {
 public:
  FileWriter(std::FILE* file, std::string path) : file_(file), path_(std::move(path)) {}
  ~FileWriter() override {
    if (file_ != nullptr && file_ != stdout) std::fclose(file_);
  }

  Status write(const nlohmann::ordered_json& row) override {
    const std::string line = row.dump() + "\n";
    if (std::fwrite(line.data(), 1, line.size(), file_) != line.size()) return failure();
    return {};
  }

  Status finish() override {
    if (std::fflush(file_) != 0) return failure();
    if (file_ != stdout) {
      std::FILE* file = file_;
      file_ = nullptr;
      if (std::fclose(file) != 0) return failure();
    }
    return {};
  }

 private:
  Status failure() const {
    return unavailable("{}: cannot write: {}; free some space or choose another place", path_,
                       std::strerror(errno));
  }

  std::FILE* file_;
  std::string path_;
};

}  // namespace

Status for_each_json_line(
    const std::string& path,
    const std::function<Status(const nlohmann::ordered_json& row, int64_t line_number)>& handle) {
  std::ifstream file;
  const bool is_standard_input = path == "-";
  if (!is_standard_input) {
    file.open(path, std::ios::binary);
    if (!file) return not_found("{}: cannot open: {}", path, std::strerror(errno));
  }
  std::istream& input = is_standard_input ? std::cin : file;
  const std::string name = is_standard_input ? "standard input" : path;
  std::string line;
  for (int64_t number = 1; std::getline(input, line); ++number) {
    if (trim(line).empty()) continue;
    const std::string where = fmt::format("{}:{}", name, number);
    if (const auto offset = first_invalid_utf8(line)) {
      return invalid_argument("{}: invalid UTF-8 at byte {}; rows are JSON in UTF-8", where,
                              *offset);
    }
    nlohmann::ordered_json row;
    try {
      row = nlohmann::ordered_json::parse(line);
    } catch (const nlohmann::json::exception& error) {
      return invalid_argument("{}: not valid JSON: {}", where, error.what());
    }
    if (!row.is_object()) {
      return invalid_argument("{}: a row must be a JSON object, got {}", where, row.type_name());
    }
    GRADUS_RETURN_IF_ERROR(handle(row, number).with_prefix(where));
  }
  if (input.bad()) return data_loss("{}: cannot read: {}", name, std::strerror(errno));
  return {};
}

Status check_messages(const nlohmann::ordered_json& row) {
  const auto messages = row.find("messages");
  if (messages == row.end() || !messages->is_array()) {
    return invalid_argument(
        "no 'messages'; expected {{\"messages\": [{{\"role\": \"...\", \"content\": \"...\"}}], "
        "...}}");
  }
  for (const auto& message : *messages) {
    if (!message.is_object()) {
      return invalid_argument("a message must be an object with 'role' and 'content', got {}",
                              message.type_name());
    }
  }
  return {};
}

Result<std::unique_ptr<JsonLinesWriter>> JsonLinesWriter::open(const std::string& path) {
  if (path == "-")
    return std::unique_ptr<JsonLinesWriter>(new FileWriter(stdout, "standard output"));
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return unavailable("{}: cannot create: {}", path, std::strerror(errno));
  return std::unique_ptr<JsonLinesWriter>(new FileWriter(file, path));
}

nlohmann::ordered_json exact_number(float value) {
  // The shortest text of the float, read as a double: nlohmann prints a double as the shortest text
  // that reads back to it, which is that text again.
  char text[64];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  double number = 0;
  std::from_chars(text, end, number);
  return number;
}

}  // namespace gradus::cli
