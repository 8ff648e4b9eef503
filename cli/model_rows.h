// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "model/transformer.h"

namespace gradus::cli {

// A model directory for commands on JSON lines. The tokenizer is there if the directory has one.
struct ModelForRows {
  std::string dir;
  std::unique_ptr<model::Transformer> transformer;
  std::unique_ptr<data::Tokenizer> tokenizer;
  std::optional<data::ChatTemplate> chat_template;
};
// The head of the model, under its adapter, must be the one that the command needs. `adapter` is
// the directory of one to merge into the model; empty: none.
Result<ModelForRows> load_model_for_rows(const std::string& dir,
                                         model::Head head = model::Head::kLanguage,
                                         const std::string& adapter = "");

// Ids of a row {"ids"}, {"text"} or, if allowed, {"messages"} (rendered with the generation
// prompt): exactly one of them. At least one id, each in the model's vocabulary.
Result<std::vector<int32_t>> row_ids(const nlohmann::ordered_json& row, const ModelForRows& model,
                                     bool allow_messages);

}  // namespace gradus::cli
