// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace gradus::data::internal {

// What tokenizer.json says of a BPE model.
struct BpeSpec {
  std::vector<std::pair<std::string, int32_t>> vocab;
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::optional<std::string> unk_token;
  bool fuses_unk = false;            // neighbouring unknown characters become one unknown token
  bool falls_back_to_bytes = false;  // an unknown character becomes its bytes, "<0x0A>" and so on
  bool ignores_merges = false;       // a pretoken that is a token is taken whole
  bool is_byte_level = false;  // pretokens are bytes, tokens are written in the byte-level alphabet
};

// Text -> id, open addressing over one arena. Immutable after building.
class TokenTable {
 public:
  void reserve(size_t num_tokens);
  void insert(std::string_view token, int32_t id);  // the last id of a token wins
  int32_t find(std::string_view token) const;       // -1 when absent
  size_t size() const { return size_; }
  size_t longest() const { return longest_; }

 private:
  struct Slot {
    uint32_t hash = 0, offset = 0, length = 0;
    int32_t id = -1;
  };
  Slot* slot(std::string_view token, uint32_t hash);
  std::vector<Slot> slots_;
  std::string arena_;
  size_t size_ = 0, longest_ = 0;
};

// Byte-pair encoding of pretokens. Immutable but for the cache of a Workspace; encode() may run in
// parallel, each call with a workspace of its own.
class Bpe {
 public:
  // InvalidArgument for merges and an unknown token that the vocabulary lacks; `where` starts the
  // message.
  static Result<std::unique_ptr<Bpe>> create(BpeSpec spec, const std::string& where);

  struct Workspace;
  struct WorkspaceDeleter {
    void operator()(Workspace* workspace) const;
  };
  using WorkspacePointer = std::unique_ptr<Workspace, WorkspaceDeleter>;
  static WorkspacePointer make_workspace();

  // Appends the ids of one pretoken: raw bytes of the text when byte-level, else the characters
  // themselves.
  void encode(std::string_view pretoken, Workspace& workspace, std::vector<int32_t>& ids) const;

  const TokenTable& tokens() const { return tokens_; }
  // Content of the token of `id`; nothing where the vocabulary has a hole.
  std::optional<std::string_view> content(int32_t id) const;
  int32_t max_id() const { return static_cast<int32_t>(contents_.size()) - 1; }

 private:
  struct Merge {
    uint32_t rank = UINT32_MAX;
    int32_t id = -1;
  };
  struct MergeSlot {
    uint64_t pair = UINT64_MAX;
    Merge merge;
  };
  Bpe() = default;
  Status build(BpeSpec spec, const std::string& where);
  const Merge* find_merge(int32_t left, int32_t right) const;
  void append_symbols(std::string_view characters, std::vector<int32_t>& symbols) const;
  int32_t single_character(std::string_view text, size_t begin, size_t end) const;
  void encode_uncached(std::string_view pretoken, Workspace& workspace,
                       std::vector<int32_t>& ids) const;
  void encode_in_words(std::string_view pretoken, Workspace& workspace,
                       std::vector<int32_t>& ids) const;
  void encode_cached(std::string_view pretoken, Workspace& workspace,
                     std::vector<int32_t>& ids) const;
  void merge_short(Workspace& workspace) const;
  void merge_long(Workspace& workspace) const;

  TokenTable tokens_;
  std::vector<std::optional<std::string>> contents_;
  std::vector<MergeSlot> merges_;
  uint64_t merge_mask_ = 0;
  std::array<int32_t, 256> byte_symbols_;      // byte-level: token of each byte, -1 when absent
  std::array<int32_t, 256> fallback_symbols_;  // "<0xXX>", -1 when absent
  std::array<int32_t, 128> ascii_symbols_;     // not byte-level: token of each ASCII character
  bool is_byte_level_ = false, has_all_bytes_ = false, ignores_merges_ = false, fuses_unk_ = false;
  bool falls_back_to_bytes_ = false;
  bool cuts_at_words_ = false;  // see encode_in_words
  int32_t unk_id_ = -1;
};

}  // namespace gradus::data::internal
