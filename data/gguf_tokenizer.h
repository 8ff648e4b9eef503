// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"

// The tokenizer of a GGUF file as the files of a Hugging Face directory: `gradus convert` reads the
// metadata and writes these texts, so there is one tokenizer (data/tokenizer.h) for both kinds of
// checkpoint.
namespace gradus::data {

// The `tokenizer.*` metadata of a GGUF file, keys as commented. V tokens, M merges.
struct GgufTokenizerMetadata {
  std::string model;                 // tokenizer.ggml.model: "gpt2" (byte-level) or "llama"
  std::string pre;                   // tokenizer.ggml.pre: "smollm", "llama-bpe", ...; may be empty
  std::vector<std::string> tokens;   // [V] tokenizer.ggml.tokens
  std::vector<int32_t> token_types;  // [V] or empty; 1 normal, 2 unknown, 3 control, 4 user
                                     // defined, 5 unused, 6 byte
  std::vector<std::string> merges;   // [M] tokenizer.ggml.merges, "a b"; "llama" may have none
  std::vector<float> scores;         // [V] or empty; from which merges of "llama" are rebuilt
  std::optional<int32_t> bos_id;     // tokenizer.ggml.{bos,eos,padding,unknown}_token_id
  std::optional<int32_t> eos_id;
  std::optional<int32_t> pad_id;
  std::optional<int32_t> unk_id;
  std::optional<bool> add_bos;               // tokenizer.ggml.add_bos_token
  std::optional<bool> add_space_prefix;      // tokenizer.ggml.add_space_prefix, "llama" only
  std::optional<std::string> chat_template;  // tokenizer.chat_template
};

struct GgufTokenizerFiles {
  std::string tokenizer_json;  // text of tokenizer.json
  std::string
      tokenizer_config_json;  // text of tokenizer_config.json: the special tokens and the template
};

// Pre-tokenizers known by `pre`: "smollm" (each digit alone, then byte level), "gpt-2" and
// "default" and an absent one (byte level), "llama-bpe" and kin, "qwen2" and kin, "qwen35". Tokens
// of type control become special added tokens, user-defined ones added tokens that are not special.
//
// The "llama" model has scores in place of merges: merges are then rebuilt, every pair of tokens
// that joins to a token, ordered by the score of the result. InvalidArgument, starting with
// `where`, for an unknown model or pre-tokenizer (naming it and the known ones), for lists of
// different lengths and ids out of range.
Result<GgufTokenizerFiles> make_tokenizer_files(const GgufTokenizerMetadata& metadata,
                                                const std::string& where);

}  // namespace gradus::data
