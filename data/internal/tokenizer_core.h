// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "data/internal/added_tokens.h"
#include "data/internal/bpe.h"
#include "data/internal/decoder.h"
#include "data/internal/normalizer.h"
#include "data/internal/pre_tokenizer.h"
#include "data/internal/tokenizer_json.h"
#include "data/internal/word_piece.h"

namespace gradus::data::internal {

// All parts of a tokenizer. Immutable but for a pool of workspaces; const calls are thread-safe.
class TokenizerCore {
 public:
  static Result<std::unique_ptr<const TokenizerCore>> create(TokenizerJson json,
                                                             const std::string& where);

  Status encode(std::string_view text, std::vector<int32_t>& ids) const;
  std::optional<std::string_view> content(
      int32_t id) const;                       // added tokens before those of the model
  int32_t find(std::string_view token) const;  // -1 when unknown
  bool is_special(int32_t id) const;
  // What a known id decodes from, and whether decoding may skip it. As in `tokenizers`, an added
  // token that is looked for in normalised text is decoded from its normalised content, and skipped
  // if that is special.
  std::string_view spelling(int32_t id) const { return spellings_[static_cast<size_t>(id)]; }
  bool is_skipped(int32_t id) const { return is_skipped_[static_cast<size_t>(id)]; }
  int64_t vocab_size() const { return vocab_size_; }
  int32_t max_id() const { return static_cast<int32_t>(contents_.size()) - 1; }
  const Decoder& decoder() const { return decoder_; }

 private:
  TokenizerCore() = default;
  Status build_model(TokenizerJson& json, const std::string& where);
  Status build_bpe(const nlohmann::json& fields, TokenizerJson& json, const std::string& where);
  Status build_word_piece(const nlohmann::json& fields, TokenizerJson& json,
                          const std::string& where);
  const TokenTable& model_tokens() const {
    return bpe_ != nullptr ? bpe_->tokens() : word_piece_->tokens();
  }
  Status build_added_tokens(const nlohmann::json& list, const std::string& where);
  Status encode_into(std::string_view text, PieceSink& sink, std::vector<int32_t>& ids) const;
  Bpe::WorkspacePointer take_workspace() const;
  void return_workspace(Bpe::WorkspacePointer workspace) const;

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Decoder decoder_;
  std::unique_ptr<Bpe> bpe_;  // or else word_piece_
  std::unique_ptr<WordPiece> word_piece_;
  TokenTable added_ids_;
  std::unique_ptr<AddedTokenMatcher> raw_matcher_, normalized_matcher_;
  std::vector<std::optional<std::string>> contents_;  // by id
  std::vector<bool> is_special_;                      // by id
  std::vector<std::string_view> spellings_;           // by id; of contents_ or normalized_contents_
  std::vector<bool> is_skipped_;                      // by id
  std::vector<std::string> normalized_contents_;      // of normalised added tokens
  int64_t vocab_size_ = 0;
  // Caches of finished calls, for the next ones: as many as calls ever ran at the same time.
  mutable std::mutex mutex_;
  mutable std::vector<Bpe::WorkspacePointer> workspaces_;
};

// See StreamingDecoder.
class DecodeStream {
 public:
  DecodeStream(const TokenizerCore& core, bool skip_special)
      : core_(core), skip_special_(skip_special), run_(core.decoder()) {}
  Status push(int32_t id, std::string& out);
  void finish(std::string& out) { run_.finish(out); }

 private:
  const TokenizerCore& core_;
  bool skip_special_;
  DecoderRun run_;
};

}  // namespace gradus::data::internal
