// SPDX-License-Identifier: Apache-2.0
#include "cli/model_rows.h"

#include <nlohmann/json.hpp>

#include "cli/json_lines.h"
#include "model/peft_adapter.h"

namespace gradus::cli {

Result<ModelForRows> load_model_for_rows(const std::string& dir, model::Head head,
                                         const std::string& adapter) {
  ModelForRows loaded;
  loaded.dir = dir;
  GRADUS_RETURN_IF_ERROR(model::check_holds_model(dir));
  Result<std::unique_ptr<model::Transformer>> transformer = model::Transformer::load(dir);
  if (!transformer.ok()) return transformer.status();
  loaded.transformer = std::move(*transformer);
  if (!adapter.empty()) {
    // A score head comes with the adapter that was trained with it.
    if (model::has_score_head(adapter) &&
        loaded.transformer->config().head == model::Head::kLanguage) {
      loaded.transformer = model::Transformer::with_score_head(*loaded.transformer, 0);
    }
    float* parameters = loaded.transformer->parameters();
    const Result<std::unique_ptr<model::LoraAdapter>> opened =
        model::open_adapter(adapter, dir, loaded.transformer->config(), parameters);
    if (!opened.ok()) return opened.status();
    (*opened)->merge(parameters);
  }
  GRADUS_RETURN_IF_ERROR(model::require_head(loaded.transformer->config(), head, dir));
  Result<std::unique_ptr<data::Tokenizer>> tokenizer = data::Tokenizer::load(dir);
  if (tokenizer.ok()) {
    loaded.tokenizer = std::move(*tokenizer);
  } else if (tokenizer.status().code() != StatusCode::kNotFound) {
    return tokenizer.status();
  }
  Result<data::ChatTemplate> chat_template = data::load_chat_template(dir);
  if (chat_template.ok()) {
    loaded.chat_template = std::move(*chat_template);
  } else if (chat_template.status().code() != StatusCode::kNotFound) {
    return chat_template.status();
  }
  return loaded;
}

Result<std::vector<int32_t>> row_ids(const nlohmann::ordered_json& row, const ModelForRows& model,
                                     bool allow_messages) {
  const bool has_messages = allow_messages && row.contains("messages");
  const int num_given =
      (row.contains("ids") ? 1 : 0) + (row.contains("text") ? 1 : 0) + (has_messages ? 1 : 0);
  if (num_given != 1) {
    return invalid_argument("a row needs exactly one of {}, this one has {}",
                            allow_messages ? "'ids', 'text' and 'messages'" : "'ids' and 'text'",
                            num_given);
  }
  std::vector<int32_t> ids;
  if (row.contains("ids")) {
    if (!row["ids"].is_array()) return invalid_argument("'ids' must be a list of token ids");
    for (const auto& id : row["ids"]) {
      if (!id.is_number_integer())
        return invalid_argument("'ids' must be a list of token ids, found {}", id.dump());
      const int64_t value = id.get<int64_t>();  // negative for what only an unsigned number holds
      if (value < 0 || value >= model.transformer->config().vocab_size) {
        return invalid_argument("token id {} is not in the model's vocabulary [0, {})", id.dump(),
                                model.transformer->config().vocab_size);
      }
      ids.push_back(static_cast<int32_t>(value));
    }
  } else {
    if (model.tokenizer == nullptr) {
      return not_found(
          "{}/tokenizer.json: not found; it is needed for 'text' and 'messages' (rows of 'ids' "
          "need "
          "none)",
          model.dir);
    }
    std::string text;
    if (has_messages) {
      if (!model.chat_template) {
        return not_found(
            "{}: the model has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); give 'text' instead",
            model.dir);
      }
      GRADUS_RETURN_IF_ERROR(check_messages(row));
      Result<std::string> rendered = model.chat_template->render_chat(row["messages"], true);
      if (!rendered.ok()) return rendered.status();
      text = std::move(*rendered);
    } else {
      if (!row["text"].is_string())
        return invalid_argument("'text' must be a string, got {}", row["text"].type_name());
      text = row["text"].get<std::string>();
    }
    Result<std::vector<int32_t>> encoded = model.tokenizer->encode(text);
    if (!encoded.ok()) return encoded.status();
    ids = std::move(*encoded);
  }
  if (ids.empty()) return invalid_argument("the row has no tokens; give at least one");
  return ids;
}

}  // namespace gradus::cli
