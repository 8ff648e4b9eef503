// SPDX-License-Identifier: Apache-2.0
#include "data/prompt_builder.h"

#include <nlohmann/json.hpp>

namespace gradus::data {

PromptBuilder::PromptBuilder(DataConfig config, const Tokenizer& tokenizer,
                             std::optional<ChatTemplate> chat_template)
    : config_(std::move(config)), tokenizer_(tokenizer), chat_template_(std::move(chat_template)) {}

Result<std::string> PromptBuilder::text_of(const Row& row) const {
  if (config_.prompt_format == PromptFormat::kText) {
    if (!row.messages.empty()) {
      return invalid_argument(
          "the row is a chat, but data.prompt_format is text; set it to chat, or give plain "
          "prompts");
    }
    std::string text = config_.system_prompt;
    for (const FewShotExample& example : config_.few_shot)
      text += example.question + example.answer;
    return text + row.text;
  }
  if (!chat_template_) {
    return invalid_argument(
        "data.prompt_format is chat, but the model has no chat template; set it to text");
  }
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  const auto add = [&](const std::string& role, const std::string& content) {
    messages.push_back({{"role", role}, {"content", content}});
  };
  std::vector<Message> own = row.messages;
  if (own.empty()) own.push_back({"user", row.text});
  if (!config_.system_prompt.empty()) {
    if (own.front().role == "system") own.erase(own.begin());  // the configuration's wins
    add("system", config_.system_prompt);
  } else if (own.front().role == "system") {
    add("system", own.front().content);
    own.erase(own.begin());
  }
  for (const FewShotExample& example : config_.few_shot) {
    add("user", example.question);
    add("assistant", example.answer);
  }
  for (const Message& message : own) add(message.role, message.content);
  return chat_template_->render_chat(messages, /*add_generation_prompt=*/true);
}

Result<Prompt> PromptBuilder::build(const Row& row, uint64_t prompt_id) const {
  Result<std::string> text = text_of(row);
  if (!text.ok()) return text.status().with_prefix(place_of(row));
  Result<std::vector<int32_t>> ids = tokenizer_.encode(*text);
  if (!ids.ok()) return ids.status().with_prefix(place_of(row));
  if (ids->empty()) return invalid_argument("{}: the prompt is empty", place_of(row));
  Prompt prompt;
  prompt.prompt_id = prompt_id;
  prompt.token_ids = std::move(*ids);
  prompt.text = std::move(*text);
  prompt.task = row.data_source;
  prompt.answer = row.ground_truth;
  prompt.metadata = metadata_of(row);
  return prompt;
}

std::string byte_tokenizer_json() {
  // GPT-2's table: printable bytes stand for themselves, the others for code points from 256 on.
  nlohmann::ordered_json vocabulary;
  uint32_t next_code = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool is_printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const uint32_t code = is_printable ? byte : next_code++;
    std::string text;
    if (code < 0x80) {
      text = static_cast<char>(code);
    } else {
      text = {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
    }
    vocabulary[text] = byte;
  }
  const nlohmann::ordered_json byte_level = {{"type", "ByteLevel"},
                                             {"add_prefix_space", false},
                                             {"trim_offsets", true},
                                             {"use_regex", false}};
  const nlohmann::ordered_json end = {
      {"id", 256},       {"content", "<|endoftext|>"}, {"single_word", false}, {"lstrip", false},
      {"rstrip", false}, {"normalized", false},        {"special", true}};
  const nlohmann::ordered_json model = {{"type", "BPE"},
                                        {"dropout", nullptr},
                                        {"unk_token", nullptr},
                                        {"continuing_subword_prefix", nullptr},
                                        {"end_of_word_suffix", nullptr},
                                        {"fuse_unk", false},
                                        {"byte_fallback", false},
                                        {"ignore_merges", false},
                                        {"vocab", vocabulary},
                                        {"merges", nlohmann::ordered_json::array()}};
  const nlohmann::ordered_json tokenizer = {{"version", "1.0"},
                                            {"truncation", nullptr},
                                            {"padding", nullptr},
                                            {"added_tokens", nlohmann::ordered_json::array({end})},
                                            {"normalizer", nullptr},
                                            {"pre_tokenizer", byte_level},
                                            {"post_processor", nullptr},
                                            {"decoder", byte_level},
                                            {"model", model}};
  return tokenizer.dump(1);
}

}  // namespace gradus::data
