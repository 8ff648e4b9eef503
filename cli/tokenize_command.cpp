// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <limits>
#include <memory>
#include <vector>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "data/tokenizer.h"

namespace gradus::cli {
namespace {

struct TokenizeOptions {
  std::string model_dir;
  std::string input = "-";
  std::string output = "-";
  bool decodes = false;
};

Result<nlohmann::ordered_json> encode_row(const data::Tokenizer& tokenizer,
                                          const nlohmann::ordered_json& row) {
  const auto text = row.find("text");
  if (text == row.end() || !text->is_string())
    return invalid_argument("no 'text'; expected {{\"text\": \"...\"}}");
  auto ids = tokenizer.encode(text->get_ref<const std::string&>());
  GRADUS_RETURN_IF_ERROR(ids.status());
  return nlohmann::ordered_json{{"ids", *ids}};
}

Result<nlohmann::ordered_json> decode_row(const data::Tokenizer& tokenizer,
                                          const nlohmann::ordered_json& row) {
  const auto list = row.find("ids");
  if (list == row.end() || !list->is_array())
    return invalid_argument("no 'ids'; expected {{\"ids\": [...]}}");
  std::vector<int32_t> ids;
  ids.reserve(list->size());
  for (const auto& id : *list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
      return invalid_argument("ids[{}]: {} is not a token id; expected a whole number >= 0",
                              ids.size(), id.dump());
    }
    ids.push_back(id.get<int32_t>());
  }
  auto text = tokenizer.decode(ids);
  GRADUS_RETURN_IF_ERROR(text.status());
  return nlohmann::ordered_json{{"text", std::move(*text)}};
}

Status tokenize(const TokenizeOptions& options) {
  auto tokenizer = data::Tokenizer::load(options.model_dir);
  GRADUS_RETURN_IF_ERROR(tokenizer.status());
  auto writer = JsonLinesWriter::open(options.output);
  GRADUS_RETURN_IF_ERROR(writer.status());
  const Status status =
      for_each_json_line(options.input, [&](const nlohmann::ordered_json& row, int64_t) -> Status {
        auto result = options.decodes ? decode_row(**tokenizer, row) : encode_row(**tokenizer, row);
        GRADUS_RETURN_IF_ERROR(result.status());
        return (*writer)->write(*result);
      });
  const Status finished = (*writer)->finish();  // the rows before a bad one are kept
  return status.ok() ? finished : status;
}

}  // namespace

void add_tokenize_command(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("tokenize", "Turn {\"text\"} rows into {\"ids\"} rows, or back");
  auto options = std::make_shared<TokenizeOptions>();
  command->add_option("--model", options->model_dir, "Directory with a tokenizer.json")->required();
  command->add_flag("--decode", options->decodes,
                    "Read {\"ids\"}, print {\"text\"} (special tokens kept)");
  command->add_option("--input", options->input, "JSON lines to read; - is standard input")
      ->capture_default_str();
  command->add_option("--out", options->output, "Where to write; - is standard output")
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return tokenize(*options); }; });
}

}  // namespace gradus::cli
