// SPDX-License-Identifier: Apache-2.0
#include "data/internal/word_piece.h"

#include <algorithm>

#include "data/internal/unicode.h"

namespace gradus::data::internal {

Result<std::unique_ptr<WordPiece>> WordPiece::create(WordPieceSpec spec, const std::string& where) {
  std::unique_ptr<WordPiece> model(new WordPiece);
  model->tokens_.reserve(spec.vocab.size());
  model->inner_.reserve(spec.vocab.size());
  for (auto& [token, id] : spec.vocab) {
    model->tokens_.insert(token, id);
    if (token.starts_with(spec.prefix)) {
      model->inner_.insert(std::string_view(token).substr(spec.prefix.size()), id);
    }
    if (static_cast<size_t>(id) >= model->contents_.size()) {
      model->contents_.resize(static_cast<size_t>(id) + 1);
    }
    model->contents_[static_cast<size_t>(id)] = std::move(token);
  }
  model->unk_id_ = model->tokens_.find(spec.unk_token);
  if (model->unk_id_ < 0) {
    return invalid_argument("{}: the unk_token '{}' is not in the vocabulary", where,
                            spec.unk_token);
  }
  model->longest_word_ = static_cast<size_t>(spec.longest_word);
  return model;
}

void WordPiece::encode(std::string_view word, std::vector<int32_t>& ids) const {
  const auto num_characters = std::count_if(word.begin(), word.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  });
  if (static_cast<size_t>(num_characters) > longest_word_) {
    ids.push_back(unk_id_);
    return;
  }
  const size_t first = ids.size();
  for (size_t begin = 0; begin < word.size();) {
    const TokenTable& table = begin == 0 ? tokens_ : inner_;
    size_t end = std::min(word.size(), begin + table.longest());
    // Back to the end of a character, then by characters.
    while (end < word.size() && (static_cast<unsigned char>(word[end]) & 0xC0) == 0x80) --end;
    int32_t id = -1;
    while (end > begin && (id = table.find(word.substr(begin, end - begin))) < 0) {
      end = previous_code_point(word, end);
    }
    if (id < 0) {
      ids.resize(first);
      ids.push_back(unk_id_);
      return;
    }
    ids.push_back(id);
    begin = end;
  }
}

std::optional<std::string_view> WordPiece::content(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= contents_.size()) return std::nullopt;
  const auto& content = contents_[static_cast<size_t>(id)];
  return content ? std::optional<std::string_view>(*content) : std::nullopt;
}

}  // namespace gradus::data::internal
