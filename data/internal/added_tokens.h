// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gradus::data::internal {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool is_special = false;
  bool is_normalized = false;  // looked for in the normalised text, by its normalised content
  bool strips_left = false;    // takes the white space before it
  bool strips_right = false;
  bool is_single_word = false;  // only where no word character touches it
};

// A stretch of text that is an added token (`id` >= 0) or not (`id` -1).
struct Segment {
  int32_t id;
  size_t begin, end;  // bytes
};

// Finds added tokens: the leftmost, and of those the longest. Immutable; find() is thread-safe.
class AddedTokenMatcher {
 public:
  // `contents[i]` is what to look for in the place of `tokens[i].content`; empty ones are never
  // found.
  AddedTokenMatcher(std::vector<AddedToken> tokens, const std::vector<std::string>& contents);

  bool empty() const { return tokens_.empty(); }
  // Segments that cover `text` (valid UTF-8) in order; none for an empty text. A token that strips
  // the white space to its right may overlap the one that starts with that white space, as in
  // `tokenizers`.
  void find(std::string_view text, std::vector<Segment>& segments) const;

 private:
  struct Node {
    uint32_t first_edge = 0, num_edges = 0;
    int32_t token = -1;  // index into tokens_
  };
  struct Edge {
    uint8_t byte;
    uint32_t node;
  };
  void build(uint32_t node, size_t depth, size_t begin, size_t end,
             const std::vector<std::pair<std::string, int32_t>>& sorted);
  const Node* child(const Node& node, uint8_t byte) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::array<bool, 256> starts_{};  // first bytes of tokens
};

}  // namespace gradus::data::internal
