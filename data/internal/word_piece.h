// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "data/internal/bpe.h"

namespace gradus::data::internal {

// What tokenizer.json says of a WordPiece model.
struct WordPieceSpec {
  std::vector<std::pair<std::string, int32_t>> vocab;
  std::string unk_token = "[UNK]";
  std::string prefix = "##";   // of a piece that goes on in a word
  int64_t longest_word = 100;  // characters; a longer word is unknown
};

// Each word as the longest pieces from its start on; a word with a rest that is no piece is one
// unknown token (Devlin et al. 2018, after Schuster and Nakajima 2012). Immutable, thread-safe.
class WordPiece {
 public:
  // InvalidArgument, starting with `where`, if the unknown token is not in the vocabulary.
  static Result<std::unique_ptr<WordPiece>> create(WordPieceSpec spec, const std::string& where);

  // Appends the ids of one word.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

  const TokenTable& tokens() const { return tokens_; }
  std::optional<std::string_view> content(int32_t id) const;
  int32_t max_id() const { return static_cast<int32_t>(contents_.size()) - 1; }

 private:
  WordPiece() = default;
  TokenTable tokens_, inner_;  // inner_: pieces that go on, without the prefix
  std::vector<std::optional<std::string>> contents_;
  int32_t unk_id_ = 0;
  size_t longest_word_ = 100;
};

}  // namespace gradus::data::internal
