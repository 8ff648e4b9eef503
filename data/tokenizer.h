// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

// Text <-> token ids, from the tokenizer.json of a Hugging Face model directory.
//
// Served: byte-level BPE (GPT-2, SmolLM, Llama-3, Qwen2 and later), byte-fallback BPE (Llama-2,
// Gemma) and WordPiece (BERT and the encoders that come from it). The components of the file are
// interpreted as they stand (data/README.md lists them); one that is not served is an error that
// names it, never skipped. Ids equal those of the PyPI `tokenizers` package called with
// add_special_tokens = False: special tokens written in the text are recognised, none are added,
// and the post-processor of the file is not applied.
//
// Cost: encoding is linear in the text but for the merge queue of a single pretoken (n log n);
// pretokens seen before come from a cache. The first encode builds nothing: all tables are built
// when the file is read.
namespace gradus::data {

namespace internal {
class TokenizerCore;
class DecodeStream;
}  // namespace internal

// Immutable; all const calls may run in parallel on one object. Movable through its unique_ptr
// only.
class Tokenizer {
 public:
  // `where` names the text in messages (a path, or the GGUF file that it was made from).
  // InvalidArgument for malformed JSON, an unsupported component or an inconsistent vocabulary.
  static Result<std::unique_ptr<Tokenizer>> from_json(std::string_view tokenizer_json,
                                                      const std::string& where);
  // Reads `model_dir`/tokenizer.json. NotFound when there is none.
  static Result<std::unique_ptr<Tokenizer>> load(const std::string& model_dir);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Ids of `text`, which may be empty. Example (SmolLM2): "2+3" -> {34, 27, 35}. InvalidArgument
  // naming the byte offset when `text` is not valid UTF-8, or when a pattern of the file runs into
  // its match limit.
  Result<std::vector<int32_t>> encode(std::string_view text) const;

  // Text of `ids`: valid UTF-8 always, bytes that form no code point become U+FFFD. `skip_special`
  // leaves out the special tokens. InvalidArgument naming the position of an id that is not in the
  // vocabulary (which a model whose embedding has more rows than the tokenizer has tokens can
  // sample).
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special = false) const;

  // Number of distinct tokens, added ones included. Ids may have holes: see max_id().
  int64_t vocab_size() const;
  // The largest id of any token; embedding tables need at least max_id() + 1 rows.
  int32_t max_id() const;
  // Id of a token by its exact content as tokenizer.json writes it ("<|im_end|>", a "G-dot" form
  // for bytes).
  std::optional<int32_t> token_to_id(std::string_view token) const;
  // The reverse; nothing for an unknown id.
  std::optional<std::string> id_to_token(int32_t id) const;
  // True for added tokens marked special; false for others and for unknown ids.
  bool is_special(int32_t id) const;
  bool is_known(int32_t id) const;

 private:
  friend class StreamingDecoder;
  explicit Tokenizer(std::unique_ptr<const internal::TokenizerCore> core);
  std::unique_ptr<const internal::TokenizerCore> core_;
};

// Decodes ids as they are sampled. The texts returned by append() and finish(), joined, equal
// decode() of all ids; each of them is valid UTF-8, so a code point whose bytes are spread over
// tokens appears with the token that completes it (and bytes that later tokens may still complete
// are held back). Not thread-safe; the tokenizer must outlive it.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(const Tokenizer& tokenizer, bool skip_special = false);
  ~StreamingDecoder();
  StreamingDecoder(StreamingDecoder&&) noexcept;
  StreamingDecoder& operator=(StreamingDecoder&&) noexcept;

  // The text that `id` completes, often empty. InvalidArgument for an unknown id, which changes
  // nothing.
  Result<std::string> append(int32_t id);
  // The rest: what was held back. The decoder is as new afterwards.
  std::string finish();

 private:
  std::unique_ptr<internal::DecodeStream> stream_;
};

}  // namespace gradus::data
