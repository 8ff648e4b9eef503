// SPDX-License-Identifier: Apache-2.0
#include "data/internal/bpe.h"

#include <algorithm>
#include <cstring>
#include <queue>

#include "common/check.h"
#include "data/internal/unicode.h"

namespace gradus::data::internal {
namespace {

constexpr std::string_view kMetaspace =
    "\xE2\x96\x81";  // U+2581, the written space of Llama-2 and Gemma
// Up to this many symbols a search through all pairs beats the heap (measured: they meet near 60).
constexpr size_t kShortSymbols = 48;
constexpr size_t kCacheSlots = size_t{1} << 15;
constexpr size_t kCachedBytes = 22, kCachedIds = 10;  // a slot is one cache line

uint64_t hash_bytes(std::string_view text) {
  // Eight bytes at a time, mixed by multiplication; enough for tables that compare the text as
  // well.
  uint64_t hash = text.size() * 0x9E3779B97F4A7C15u;
  const char* data = text.data();
  size_t left = text.size();
  uint64_t word;
  for (; left >= 8; left -= 8, data += 8) {
    std::memcpy(&word, data, 8);
    hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
  }
  if (left > 0) {
    word = 0;
    std::memcpy(&word, data, left);
    hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
  }
  hash *= 0xD6E8FEB86659FD93u;
  return hash ^ (hash >> 32);
}

uint64_t hash_pair(uint64_t pair) {
  pair *= 0x9E3779B97F4A7C15u;
  return pair ^ (pair >> 32);
}

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t table_size(size_t num_entries) {
  size_t size = 16;
  while (size < num_entries * 2) size *= 2;
  return size;
}

}  // namespace

void TokenTable::reserve(size_t num_tokens) { slots_.assign(table_size(num_tokens), Slot{}); }

TokenTable::Slot* TokenTable::slot(std::string_view token, uint32_t hash) {
  const size_t mask = slots_.size() - 1;
  for (size_t i = hash & mask;; i = (i + 1) & mask) {
    Slot& candidate = slots_[i];
    if (candidate.id < 0) return &candidate;
    if (candidate.hash == hash && candidate.length == token.size() &&
        std::memcmp(arena_.data() + candidate.offset, token.data(), token.size()) == 0) {
      return &candidate;
    }
  }
}

void TokenTable::insert(std::string_view token, int32_t id) {
  const auto hash = static_cast<uint32_t>(hash_bytes(token));
  Slot* place = slot(token, hash);
  if (place->id < 0) {
    *place = {hash, static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(token.size()), id};
    arena_.append(token);
    ++size_;
    longest_ = std::max(longest_, token.size());
  }
  place->id = id;
}

int32_t TokenTable::find(std::string_view token) const {
  if (slots_.empty() || token.size() > longest_) return -1;
  return const_cast<TokenTable*>(this)->slot(token, static_cast<uint32_t>(hash_bytes(token)))->id;
}

struct Bpe::Workspace {
  struct CacheSlot {
    uint8_t length = 0, num_ids = 0;
    char bytes[kCachedBytes] = {};
    int32_t ids[kCachedIds] = {};
  };
  static_assert(sizeof(CacheSlot) == 64);
  // A heap entry: the merge of the symbol at `position` with the one behind it.
  struct Candidate {
    uint32_t rank, position;
    int32_t id;
    bool operator<(
        const Candidate& other) const {  // the top of the heap is the lowest rank, leftmost
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  std::vector<CacheSlot> cache = std::vector<CacheSlot>(kCacheSlots);
  std::string characters;
  std::vector<int32_t> symbols;
  std::vector<int32_t> next, previous;
  std::vector<Candidate> heap;
};

void Bpe::WorkspaceDeleter::operator()(Workspace* workspace) const { delete workspace; }

Bpe::WorkspacePointer Bpe::make_workspace() { return WorkspacePointer(new Workspace); }

Result<std::unique_ptr<Bpe>> Bpe::create(BpeSpec spec, const std::string& where) {
  std::unique_ptr<Bpe> bpe(new Bpe);
  GRADUS_RETURN_IF_ERROR(bpe->build(std::move(spec), where));
  return bpe;
}

Status Bpe::build(BpeSpec spec, const std::string& where) {
  is_byte_level_ = spec.is_byte_level;
  ignores_merges_ = spec.ignores_merges;
  fuses_unk_ = spec.fuses_unk;
  falls_back_to_bytes_ = spec.falls_back_to_bytes;
  tokens_.reserve(spec.vocab.size());
  for (const auto& [token, id] : spec.vocab) {
    tokens_.insert(token, id);
    if (static_cast<size_t>(id) >= contents_.size()) contents_.resize(static_cast<size_t>(id) + 1);
  }
  for (auto& [token, id] : spec.vocab) contents_[static_cast<size_t>(id)] = std::move(token);

  const size_t num_slots = table_size(spec.merges.size());
  merges_.assign(num_slots, MergeSlot{});
  merge_mask_ = num_slots - 1;
  // A cut before a written space is safe when no merge joins it to another character on its left.
  cuts_at_words_ = !is_byte_level_ && !ignores_merges_ && tokens_.find(kMetaspace) >= 0;
  std::string joined;
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    joined.assign(left).append(right);
    const int32_t left_id = tokens_.find(left), right_id = tokens_.find(right),
                  id = tokens_.find(joined);
    for (const auto& [part, part_id] :
         {std::pair(&left, left_id), {&right, right_id}, {&joined, id}}) {
      if (part_id < 0) {
        return invalid_argument(
            "{}: merge {} ('{}' '{}') needs the token '{}'; expected every part and result of "
            "a merge in model.vocab",
            where, rank, left, right, *part);
      }
    }
    const uint64_t pair = pair_key(left_id, right_id);
    size_t i = hash_pair(pair) & merge_mask_;
    while (merges_[i].pair != UINT64_MAX && merges_[i].pair != pair) i = (i + 1) & merge_mask_;
    merges_[i] = {pair, {static_cast<uint32_t>(rank), id}};
    if (right.starts_with(kMetaspace) && !left.ends_with(kMetaspace)) cuts_at_words_ = false;
    if (left.starts_with("<0x") || right.starts_with("<0x")) cuts_at_words_ = false;
  }
  if (spec.unk_token) {
    unk_id_ = tokens_.find(*spec.unk_token);
    if (unk_id_ < 0) {
      return invalid_argument("{}: unk_token '{}' is not in model.vocab", where, *spec.unk_token);
    }
  }
  has_all_bytes_ = true;
  for (size_t byte = 0; byte < 256; ++byte) {
    std::string character;
    append_code_point(character, byte_level_character(static_cast<uint8_t>(byte)));
    byte_symbols_[byte] = tokens_.find(character);
    has_all_bytes_ = has_all_bytes_ && byte_symbols_[byte] >= 0;
    fallback_symbols_[byte] = tokens_.find(fmt::format("<0x{:02X}>", byte));
  }
  for (size_t c = 0; c < 128; ++c) {
    const char character = static_cast<char>(c);
    ascii_symbols_[c] = tokens_.find({&character, 1});
  }
  return {};
}

std::optional<std::string_view> Bpe::content(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= contents_.size()) return std::nullopt;
  const auto& content = contents_[static_cast<size_t>(id)];
  return content ? std::optional<std::string_view>(*content) : std::nullopt;
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  for (size_t i = hash_pair(pair) & merge_mask_;; i = (i + 1) & merge_mask_) {
    const MergeSlot& candidate = merges_[i];
    if (candidate.pair == pair) return &candidate.merge;
    if (candidate.pair == UINT64_MAX) return nullptr;
  }
}

int32_t Bpe::single_character(std::string_view text, size_t begin, size_t end) const {
  if (end - begin == 1) return ascii_symbols_[static_cast<uint8_t>(text[begin])];
  return tokens_.find(text.substr(begin, end - begin));
}

void Bpe::append_symbols(std::string_view characters, std::vector<int32_t>& symbols) const {
  bool is_unk_pending = false;
  for (size_t i = 0; i < characters.size();) {
    const size_t end = i + decode_code_point(characters.data() + i).length;
    const int32_t id = single_character(characters, i, end);
    if (id >= 0) {
      if (is_unk_pending) symbols.push_back(unk_id_);
      is_unk_pending = false;
      symbols.push_back(id);
    } else {
      const auto has_fallback = [this](char c) {
        return fallback_symbols_[static_cast<uint8_t>(c)] >= 0;
      };
      if (falls_back_to_bytes_ &&
          std::all_of(characters.begin() + static_cast<ptrdiff_t>(i),
                      characters.begin() + static_cast<ptrdiff_t>(end), has_fallback)) {
        // A pending unknown token stays pending, and so comes behind these bytes: that is what
        // `tokenizers` does with a vocabulary that has only some of the bytes.
        for (size_t j = i; j < end; ++j)
          symbols.push_back(fallback_symbols_[static_cast<uint8_t>(characters[j])]);
      } else if (unk_id_ >= 0) {
        if (is_unk_pending && !fuses_unk_) symbols.push_back(unk_id_);
        is_unk_pending = true;
      }  // without an unknown token the character is dropped
    }
    i = end;
  }
  if (is_unk_pending) symbols.push_back(unk_id_);
}

void Bpe::merge_short(Workspace& workspace) const {
  auto& symbols = workspace.symbols;
  size_t size = symbols.size();
  uint32_t ranks[kShortSymbols];
  int32_t merged[kShortSymbols];
  const auto look_up = [&](size_t i) {
    const Merge* merge = find_merge(symbols[i], symbols[i + 1]);
    ranks[i] = merge != nullptr ? merge->rank : UINT32_MAX;
    merged[i] = merge != nullptr ? merge->id : -1;
  };
  for (size_t i = 0; i + 1 < size; ++i) look_up(i);
  while (size > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < size; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == UINT32_MAX) break;
    symbols[best] = merged[best];
    --size;
    for (size_t i = best + 1; i < size; ++i) {
      symbols[i] = symbols[i + 1];
      ranks[i - 1] = ranks[i];
      merged[i - 1] = merged[i];
    }
    if (best + 1 < size) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  symbols.resize(size);
}

void Bpe::merge_long(Workspace& workspace) const {
  auto& symbols = workspace.symbols;
  auto& next = workspace.next;
  auto& previous = workspace.previous;
  auto& heap = workspace.heap;
  const auto size = static_cast<int32_t>(symbols.size());
  next.resize(symbols.size());
  previous.resize(symbols.size());
  heap.clear();
  const auto look_up = [&](int32_t position) {
    const int32_t right = next[static_cast<size_t>(position)];
    if (right >= size) return false;
    const Merge* merge =
        find_merge(symbols[static_cast<size_t>(position)], symbols[static_cast<size_t>(right)]);
    if (merge == nullptr) return false;
    heap.push_back({merge->rank, static_cast<uint32_t>(position), merge->id});
    return true;
  };
  for (int32_t i = 0; i < size; ++i) {
    next[static_cast<size_t>(i)] = i + 1;
    previous[static_cast<size_t>(i)] = i - 1;
  }
  for (int32_t i = 0; i + 1 < size; ++i) look_up(i);
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    const Workspace::Candidate top = heap.front();
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    const auto position = static_cast<size_t>(top.position);
    if (symbols[position] < 0) continue;  // merged away
    const int32_t right = next[position];
    if (right >= size) continue;
    const Merge* merge = find_merge(symbols[position], symbols[static_cast<size_t>(right)]);
    if (merge == nullptr || merge->id != top.id) continue;  // a neighbour has changed since
    symbols[position] = top.id;
    symbols[static_cast<size_t>(right)] = -1;
    next[position] = next[static_cast<size_t>(right)];
    if (next[position] < size)
      previous[static_cast<size_t>(next[position])] = static_cast<int32_t>(position);
    if (previous[position] >= 0 && look_up(previous[position]))
      std::push_heap(heap.begin(), heap.end());
    if (look_up(static_cast<int32_t>(position))) std::push_heap(heap.begin(), heap.end());
  }
  std::erase_if(symbols, [](int32_t symbol) { return symbol < 0; });
}

void Bpe::encode_uncached(std::string_view pretoken, Workspace& workspace,
                          std::vector<int32_t>& ids) const {
  auto& symbols = workspace.symbols;
  symbols.clear();
  if (ignores_merges_ && pretoken.size() <= tokens_.longest()) {
    std::string_view characters = pretoken;
    if (is_byte_level_) {
      workspace.characters.clear();
      append_byte_level(workspace.characters, pretoken);
      characters = workspace.characters;
    }
    if (const int32_t id = tokens_.find(characters); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  if (is_byte_level_ && has_all_bytes_) {
    for (char c : pretoken) symbols.push_back(byte_symbols_[static_cast<uint8_t>(c)]);
  } else if (is_byte_level_) {
    workspace.characters.clear();
    append_byte_level(workspace.characters, pretoken);
    append_symbols(workspace.characters, symbols);
  } else {
    append_symbols(pretoken, symbols);
  }
  if (symbols.size() <= kShortSymbols) {
    merge_short(workspace);
  } else {
    merge_long(workspace);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::encode_cached(std::string_view pretoken, Workspace& workspace,
                        std::vector<int32_t>& ids) const {
  if (pretoken.size() > kCachedBytes) return encode_uncached(pretoken, workspace, ids);
  auto& slot = workspace.cache[hash_bytes(pretoken) & (kCacheSlots - 1)];
  if (slot.length == pretoken.size() &&
      std::memcmp(slot.bytes, pretoken.data(), pretoken.size()) == 0) {
    ids.insert(ids.end(), slot.ids, slot.ids + slot.num_ids);
    return;
  }
  const size_t first = ids.size();
  encode_uncached(pretoken, workspace, ids);
  const size_t count = ids.size() - first;
  if (count > kCachedIds) return;
  slot.length = static_cast<uint8_t>(pretoken.size());
  slot.num_ids = static_cast<uint8_t>(count);
  std::memcpy(slot.bytes, pretoken.data(), pretoken.size());
  std::copy(ids.begin() + static_cast<ptrdiff_t>(first), ids.end(), slot.ids);
}

// Llama-2 and Gemma have no pre-tokenizer: a whole document is one pretoken. Where no merge joins a
// written space to another character on its left, that border outlives all merges, so the words on
// its two sides can be encoded apart (and cached). Both characters must be tokens: an unknown one
// may fuse with its neighbours.
void Bpe::encode_in_words(std::string_view pretoken, Workspace& workspace,
                          std::vector<int32_t>& ids) const {
  size_t begin = 0;
  for (size_t i = pretoken.find(kMetaspace, 1); i != std::string_view::npos;
       i = pretoken.find(kMetaspace, i + kMetaspace.size())) {
    const size_t before = previous_code_point(pretoken, i);
    if (pretoken.substr(before, i - before) == kMetaspace ||
        single_character(pretoken, before, i) < 0)
      continue;
    encode_cached(pretoken.substr(begin, i - begin), workspace, ids);
    begin = i;
  }
  encode_cached(pretoken.substr(begin), workspace, ids);
}

void Bpe::encode(std::string_view pretoken, Workspace& workspace, std::vector<int32_t>& ids) const {
  if (pretoken.empty()) return;
  if (cuts_at_words_) return encode_in_words(pretoken, workspace, ids);
  encode_cached(pretoken, workspace, ids);
}

}  // namespace gradus::data::internal
