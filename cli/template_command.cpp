// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "data/chat_template.h"

namespace gradus::cli {
namespace {

struct TemplateOptions {
  std::string model_dir;
  std::string template_file;
  std::optional<std::string> bos, eos;
  std::string input = "-";
  std::string output = "-";
};

Result<data::ChatTemplate> load(const TemplateOptions& options) {
  if (options.model_dir.empty() == options.template_file.empty()) {
    return invalid_argument("gradus template: give either --model DIR or --template FILE");
  }
  Result<data::ChatTemplate> loaded = [&]() -> Result<data::ChatTemplate> {
    if (!options.model_dir.empty()) return data::load_chat_template(options.model_dir);
    std::ifstream file(options.template_file, std::ios::binary);
    if (!file) return not_found("{}: cannot open: {}", options.template_file, std::strerror(errno));
    std::ostringstream text;
    text << file.rdbuf();
    return data::ChatTemplate::parse(std::move(text).str(), options.template_file);
  }();
  if (!loaded.ok()) return loaded;
  if (options.bos) loaded->set_special_token("bos_token", *options.bos);
  if (options.eos) loaded->set_special_token("eos_token", *options.eos);
  return loaded;
}

// The row's members are the template's variables; those that transformers always passes get its
// defaults.
Result<nlohmann::ordered_json> render_row(const data::ChatTemplate& chat_template,
                                          const nlohmann::ordered_json& row) {
  GRADUS_RETURN_IF_ERROR(check_messages(row));
  Result<std::string> text =
      chat_template.render_chat(row["messages"], false, nullptr, nullptr, &row);
  GRADUS_RETURN_IF_ERROR(text.status());
  return nlohmann::ordered_json{{"text", std::move(*text)}};
}

Status render(const TemplateOptions& options) {
  const Result<data::ChatTemplate> chat_template = load(options);
  GRADUS_RETURN_IF_ERROR(chat_template.status());
  auto writer = JsonLinesWriter::open(options.output);
  GRADUS_RETURN_IF_ERROR(writer.status());
  const Status status =
      for_each_json_line(options.input, [&](const nlohmann::ordered_json& row, int64_t) -> Status {
        auto result = render_row(*chat_template, row);
        GRADUS_RETURN_IF_ERROR(result.status());
        return (*writer)->write(*result);
      });
  const Status finished = (*writer)->finish();  // the rows before a bad one are kept
  return status.ok() ? finished : status;
}

}  // namespace

void add_template_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "template", "Turn {\"messages\"} rows into {\"text\"} rows by a chat template");
  auto options = std::make_shared<TemplateOptions>();
  auto* model = command->add_option("--model", options->model_dir,
                                    "Model directory with the template and its special tokens");
  auto* file = command->add_option("--template", options->template_file, "Template file (Jinja)");
  model->excludes(file);
  command->add_option("--bos", options->bos, "Text of bos_token (default: the model's)");
  command->add_option("--eos", options->eos, "Text of eos_token (default: the model's)");
  command
      ->add_option("--input", options->input,
                   "JSON lines {\"messages\", \"add_generation_prompt\", \"tools\", ...}; further "
                   "members are variables of the template; - is standard input")
      ->capture_default_str();
  command->add_option("--out", options->output, "Where to write; - is standard output")
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return render(*options); }; });
}

}  // namespace gradus::cli
