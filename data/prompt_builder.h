// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "common/status.h"
#include "data/chat_template.h"
#include "data/data_config.h"
#include "data/dataset.h"
#include "data/tokenizer.h"
#include "data/types.h"

namespace gradus::data {

// Makes prompts of rows: the system prompt and the solved examples of the configuration before the
// row's own messages, through the chat template with the generation prompt, then to ids. Rows of
// plain text are taken as they are (prompt_format chat makes a user message of them). Thread-safe;
// the tokenizer must outlive it.
class PromptBuilder {
 public:
  // `chat_template` is needed for prompt_format chat.
  PromptBuilder(DataConfig config, const Tokenizer& tokenizer,
                std::optional<ChatTemplate> chat_template);

  // InvalidArgument with the row's place if the template or the tokenizer refuses it.
  Result<Prompt> build(const Row& row, uint64_t prompt_id) const;

 private:
  Result<std::string> text_of(const Row& row) const;

  DataConfig config_;
  const Tokenizer& tokenizer_;
  std::optional<ChatTemplate> chat_template_;
};

// tokenizer.json of a tokenizer whose tokens are the 256 bytes and "<|endoftext|>" (id 256): for
// small models from scratch.
std::string byte_tokenizer_json();

}  // namespace gradus::data
