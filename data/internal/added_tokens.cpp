// SPDX-License-Identifier: Apache-2.0
#include "data/internal/added_tokens.h"

#include <algorithm>

#include "data/internal/unicode.h"

namespace gradus::data::internal {
namespace {

bool has_property_before(std::string_view text, size_t position, Property property) {
  if (position == 0) return false;
  const size_t begin = previous_code_point(text, position);
  return (PropertyTable::instance()[decode_code_point(text.data() + begin).value] & property) != 0;
}

bool has_property_at(std::string_view text, size_t position, Property property) {
  if (position == text.size()) return false;
  return (PropertyTable::instance()[decode_code_point(text.data() + position).value] & property) !=
         0;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens,
                                     const std::vector<std::string>& contents)
    : tokens_(std::move(tokens)) {
  std::vector<std::pair<std::string, int32_t>> sorted;
  for (size_t i = 0; i < contents.size(); ++i) {
    if (!contents[i].empty()) sorted.emplace_back(contents[i], static_cast<int32_t>(i));
  }
  // Of tokens with the same normalised content the first wins; in `tokenizers` it is chance (a hash
  // map's order).
  std::sort(sorted.begin(), sorted.end());
  const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
  sorted.erase(std::unique(sorted.begin(), sorted.end(), same), sorted.end());
  nodes_.emplace_back();
  if (!sorted.empty()) build(0, 0, 0, sorted.size(), sorted);
  for (const auto& [content, index] : sorted) starts_[static_cast<uint8_t>(content[0])] = true;
}

void AddedTokenMatcher::build(uint32_t node, size_t depth, size_t begin, size_t end,
                              const std::vector<std::pair<std::string, int32_t>>& sorted) {
  if (sorted[begin].first.size() == depth) nodes_[node].token = sorted[begin++].second;
  struct Group {
    size_t begin, end;
  };
  std::vector<Group> groups;
  for (size_t i = begin; i < end;) {
    size_t j = i;
    while (j < end && sorted[j].first[depth] == sorted[i].first[depth]) ++j;
    groups.push_back({i, j});
    i = j;
  }
  nodes_[node].first_edge = static_cast<uint32_t>(edges_.size());
  nodes_[node].num_edges = static_cast<uint32_t>(groups.size());
  const size_t first_edge = edges_.size();
  for (const Group& group : groups) {
    edges_.push_back({static_cast<uint8_t>(sorted[group.begin].first[depth]),
                      static_cast<uint32_t>(nodes_.size())});
    nodes_.emplace_back();
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    build(edges_[first_edge + i].node, depth + 1, groups[i].begin, groups[i].end, sorted);
  }
}

const AddedTokenMatcher::Node* AddedTokenMatcher::child(const Node& node, uint8_t byte) const {
  const Edge* begin = edges_.data() + node.first_edge;
  const Edge* end = begin + node.num_edges;
  const Edge* edge = std::lower_bound(begin, end, byte, [](const Edge& candidate, uint8_t value) {
    return candidate.byte < value;
  });
  return edge != end && edge->byte == byte ? &nodes_[edge->node] : nullptr;
}

void AddedTokenMatcher::find(std::string_view text, std::vector<Segment>& segments) const {
  size_t covered = 0;
  for (size_t i = 0; i < text.size();) {
    if (!starts_[static_cast<uint8_t>(text[i])]) {
      ++i;
      continue;
    }
    int32_t found = -1;
    size_t end = i;
    const Node* node = nodes_.data();
    for (size_t j = i; j < text.size(); ++j) {
      node = child(*node, static_cast<uint8_t>(text[j]));
      if (node == nullptr) break;
      if (node->token >= 0) {
        found = node->token;
        end = j + 1;
      }
    }
    if (found < 0) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(found)];
    size_t begin = i;
    i = end;  // a match that is discarded below covers its text all the same
    if (token.is_single_word &&
        (has_property_before(text, begin, kWord) || has_property_at(text, end, kWord))) {
      continue;
    }
    if (token.strips_left) {
      size_t stripped = begin;
      while (has_property_before(text, stripped, kSpace))
        stripped = previous_code_point(text, stripped);
      begin = std::max(stripped, covered);
    }
    if (token.strips_right) {
      while (has_property_at(text, end, kSpace)) end += decode_code_point(text.data() + end).length;
    }
    if (covered < begin) segments.push_back({-1, covered, begin});
    if (begin < end) segments.push_back({token.id, begin, end});  // else its text was taken before
    covered = end;
  }
  if (covered < text.size()) segments.push_back({-1, covered, text.size()});
}

}  // namespace gradus::data::internal
