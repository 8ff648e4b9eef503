// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/model_rows.h"
#include "data/preferences.h"
#include "data/prompt_builder.h"
#include "model/sequence_scorer.h"

namespace gradus::cli {
namespace {

struct ScoreArguments {
  std::string model, adapter, input = "-", out = "-";
  bool pairs = false;
  bool plain_prompts = false;
};

// Scores of whole sequences, in their order.
class Scorer {
 public:
  explicit Scorer(ModelForRows& model) : scorer_(*model.transformer) {}

  Status add(std::vector<int32_t> ids) {
    GRADUS_RETURN_IF_ERROR(scorer_.check(ids));
    num_waiting_tokens_ += static_cast<int64_t>(ids.size());
    waiting_.push_back(std::move(ids));
    return num_waiting_tokens_ >= model::SequenceScorer::kPackTokens ? flush() : Status();
  }

  // Scores what waits.
  Status flush() {
    for (const float score : scorer_.score(waiting_)) {
      if (!std::isfinite(score)) {
        return data_loss("the score of row {} is {}; the model's weights are broken",
                         scores.size() + 1, score);
      }
      scores.push_back(score);
    }
    waiting_.clear();
    num_waiting_tokens_ = 0;
    return {};
  }

  std::vector<float> scores;

 private:
  model::SequenceScorer scorer_;
  std::vector<std::vector<int32_t>> waiting_;
  int64_t num_waiting_tokens_ = 0;
};

// Prompt, response and end token, as training has them.
Result<std::vector<int32_t>> sequence_ids(const data::PromptBuilder& builder, const data::Row& row,
                                          const std::string& response, const ModelForRows& model) {
  Result<data::Prompt> prompt = builder.build(row, 0);
  if (!prompt.ok()) return prompt.status();
  const Result<std::vector<int32_t>> ids = model.tokenizer->encode(response);
  if (!ids.ok()) return ids.status();
  std::vector<int32_t> all = std::move(prompt->token_ids);
  all.insert(all.end(), ids->begin(), ids->end());
  const std::vector<int32_t>& ends = model.transformer->config().eos_ids;
  if (!ends.empty()) all.push_back(ends[0]);
  return all;
}

Result<data::PromptBuilder> make_builder(const ModelForRows& model, data::PromptFormat format) {
  if (model.tokenizer == nullptr) {
    return not_found("{}/tokenizer.json: not found; it is needed for all rows but those of 'ids'",
                     model.dir);
  }
  if (format == data::PromptFormat::kChat && !model.chat_template) {
    return not_found(
        "{}: the model has no chat template (chat_template.jinja, or chat_template in "
        "tokenizer_config.json); give 'text' instead of 'messages'",
        model.dir);
  }
  data::DataConfig config;
  config.prompt_format = format;
  return data::PromptBuilder(config, *model.tokenizer, model.chat_template);
}

Status score_pairs(const ScoreArguments& arguments, ModelForRows& model, JsonLinesWriter& writer) {
  const bool is_plain = arguments.plain_prompts || !model.chat_template;
  const Result<data::PromptBuilder> builder =
      make_builder(model, is_plain ? data::PromptFormat::kText : data::PromptFormat::kChat);
  if (!builder.ok()) return builder.status();
  const Result<std::vector<data::PreferenceRow>> rows =
      data::load_preferences(std::vector<std::string>{arguments.input}, 0);
  if (!rows.ok()) return rows.status();
  Scorer scorer(model);
  for (const data::PreferenceRow& row : *rows) {
    for (const std::string* response : {&row.chosen, &row.rejected}) {
      Result<std::vector<int32_t>> ids = sequence_ids(*builder, row.prompt, *response, model);
      if (!ids.ok()) return ids.status();
      GRADUS_RETURN_IF_ERROR(scorer.add(std::move(*ids)).with_prefix(data::place_of(row.prompt)));
    }
  }
  GRADUS_RETURN_IF_ERROR(scorer.flush());
  int64_t num_right = 0;
  for (size_t i = 0; i < rows->size(); ++i) {
    const float chosen = scorer.scores[2 * i], rejected = scorer.scores[2 * i + 1];
    num_right += chosen > rejected ? 1 : 0;
    GRADUS_RETURN_IF_ERROR(
        writer.write({{"chosen", exact_number(chosen)}, {"rejected", exact_number(rejected)}}));
  }
  fmt::print(stderr, "{} of {} pairs have the higher score on the chosen response\n", num_right,
             rows->size());
  return writer.finish();
}

// Ids of one row: "ids" or "text" as they are; "messages" that end with the answer of the
// assistant.
Result<std::vector<int32_t>> scored_ids(const Result<data::PromptBuilder>& builder,
                                        const nlohmann::ordered_json& row,
                                        const ModelForRows& model) {
  if (!row.contains("messages")) return row_ids(row, model, /*allow_messages=*/false);
  GRADUS_RETURN_IF_ERROR(check_messages(row));
  data::Row prompt;
  for (const auto& message : row["messages"]) {
    if (!message.contains("role") || !message["role"].is_string() || !message.contains("content") ||
        !message["content"].is_string()) {
      return invalid_argument("a message must have 'role' and 'content', both strings");
    }
    prompt.messages.push_back(
        {message["role"].get<std::string>(), message["content"].get<std::string>()});
  }
  if (prompt.messages.size() < 2 || prompt.messages.back().role != "assistant") {
    return invalid_argument("'messages' must end with the assistant's turn that is to be scored");
  }
  const std::string response = std::move(prompt.messages.back().content);
  prompt.messages.pop_back();
  prompt.data_source = "chat";
  if (!builder.ok()) return builder.status();
  return sequence_ids(*builder, prompt, response, model);
}

Status score(const ScoreArguments& arguments) {
  Result<ModelForRows> model =
      load_model_for_rows(arguments.model, model::Head::kScore, arguments.adapter);
  if (!model.ok()) return model.status();
  Result<std::unique_ptr<JsonLinesWriter>> writer = JsonLinesWriter::open(arguments.out);
  if (!writer.ok()) return writer.status();
  if (arguments.pairs) return score_pairs(arguments, *model, **writer);
  const Result<data::PromptBuilder> builder = make_builder(*model, data::PromptFormat::kChat);
  Scorer scorer(*model);
  GRADUS_RETURN_IF_ERROR(for_each_json_line(
      arguments.input, [&](const nlohmann::ordered_json& row, int64_t) -> Status {
        Result<std::vector<int32_t>> ids = scored_ids(builder, row, *model);
        return ids.ok() ? scorer.add(std::move(*ids)) : ids.status();
      }));
  GRADUS_RETURN_IF_ERROR(scorer.flush());
  for (const float value : scorer.scores) {
    GRADUS_RETURN_IF_ERROR((*writer)->write({{"score", exact_number(value)}}));
  }
  return (*writer)->finish();
}

}  // namespace

void add_score_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("score",
                                         "Scores of a reward model: JSON lines {\"ids\"}, "
                                         "{\"text\"} or {\"messages\"} in, {\"score\"} "
                                         "out");
  auto arguments = std::make_shared<ScoreArguments>();
  command->add_option("--model", arguments->model, "Hugging Face directory with a score head")
      ->required();
  command->add_option("--adapter", arguments->adapter,
                      "LoRA adapter of it (PEFT's format), which may bring the score head");
  command->add_option("--input", arguments->input, "JSON lines to read; - is standard input");
  command->add_option("--out", arguments->out, "JSON lines to write; - is standard output");
  command->add_flag("--pairs", arguments->pairs,
                    "Rows are {\"prompt\", \"chosen\", \"rejected\"}; both responses are scored");
  command->add_flag("--plain-prompts", arguments->plain_prompts,
                    "Prompts that are strings go past the model's chat template");
  command->callback([&action, arguments] { action = [arguments] { return score(*arguments); }; });
}

}  // namespace gradus::cli
