// SPDX-License-Identifier: Apache-2.0
#include "data/internal/unicode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <vector>

#include "common/check.h"
#include "data/internal/unicode_tables.h"

namespace gradus::data::internal {
namespace {

constexpr uint32_t kNumCodePoints = 0x110000;
constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

// Hangul syllables are composed by arithmetic (The Unicode Standard, section 3.12).
constexpr uint32_t kHangulFirst = 0xAC00, kLeadFirst = 0x1100, kVowelFirst = 0x1161,
                   kTrailFirst = 0x11A7;
constexpr uint32_t kNumLeads = 19, kNumVowels = 21, kNumTrails = 28;
constexpr uint32_t kNumHangul = kNumLeads * kNumVowels * kNumTrails;

uint8_t combining_class(uint32_t code_point) {
  const auto end = kCombiningClasses + kCombiningClassesSize;
  const auto range = std::lower_bound(
      kCombiningClasses, end, code_point,
      [](const CombiningClassRange& entry, uint32_t value) { return entry.last < value; });
  return range != end && range->first <= code_point ? range->combining_class : 0;
}

const Decomposition* decomposition(uint32_t code_point) {
  const auto end = kDecompositions + kDecompositionsSize;
  const auto entry = std::lower_bound(
      kDecompositions, end, code_point,
      [](const Decomposition& candidate, uint32_t value) { return candidate.code_point < value; });
  return entry != end && entry->code_point == code_point ? entry : nullptr;
}

// The primary composite of a pair, or 0.
uint32_t compose(uint32_t first, uint32_t second) {
  if (first >= kLeadFirst && first < kLeadFirst + kNumLeads && second >= kVowelFirst &&
      second < kVowelFirst + kNumVowels) {
    return kHangulFirst + ((first - kLeadFirst) * kNumVowels + (second - kVowelFirst)) * kNumTrails;
  }
  if (first >= kHangulFirst && first < kHangulFirst + kNumHangul &&
      (first - kHangulFirst) % kNumTrails == 0 && second > kTrailFirst &&
      second < kTrailFirst + kNumTrails) {
    return first + (second - kTrailFirst);
  }
  const auto end = kCompositions + kCompositionsSize;
  const auto entry = std::lower_bound(kCompositions, end, std::pair(first, second),
                                      [](const Composition& candidate, const auto& pair) {
                                        return std::pair(candidate.first, candidate.second) < pair;
                                      });
  return entry != end && entry->first == first && entry->second == second ? entry->composed : 0;
}

// Bit per code point: may take part in a change by NFC, because it decomposes, has a combining
// class or is the second of a composing pair. Text without such code points is its own NFC.
class NfcSuspects {
 public:
  static const NfcSuspects& instance() {
    static const NfcSuspects suspects;
    return suspects;
  }
  bool operator[](uint32_t code_point) const {
    return bits_[code_point >> 6] >> (code_point & 63) & 1;
  }

 private:
  NfcSuspects() : bits_(kNumCodePoints / 64) {
    for (size_t i = 0; i < kCombiningClassesSize; ++i) {
      for (uint32_t c = kCombiningClasses[i].first; c <= kCombiningClasses[i].last; ++c) set(c);
    }
    std::vector<bool> is_composite(kNumCodePoints);
    for (size_t i = 0; i < kCompositionsSize; ++i) {
      set(kCompositions[i].second);
      is_composite[kCompositions[i].composed] = true;
    }
    // A primary composite is its own NFC unless a suspect follows.
    for (size_t i = 0; i < kDecompositionsSize; ++i) {
      if (!is_composite[kDecompositions[i].code_point]) set(kDecompositions[i].code_point);
    }
    for (uint32_t c = kVowelFirst; c < kVowelFirst + kNumVowels; ++c) set(c);
    for (uint32_t c = kTrailFirst + 1; c < kTrailFirst + kNumTrails; ++c) set(c);
  }
  void set(uint32_t code_point) { bits_[code_point >> 6] |= uint64_t{1} << (code_point & 63); }
  std::vector<uint64_t> bits_;
};

struct Item {
  uint32_t code_point;
  uint8_t combining_class;
};

// `text` decomposed, its marks in canonical order.
std::vector<Item> decomposed(std::string_view text) {
  std::vector<Item> items;
  items.reserve(text.size());
  const auto push = [&items](uint32_t c) { items.push_back({c, combining_class(c)}); };
  for (size_t i = 0; i < text.size();) {
    const auto [c, length] = decode_code_point(text.data() + i);
    i += length;
    if (c >= kHangulFirst && c < kHangulFirst + kNumHangul) {
      const uint32_t index = c - kHangulFirst;
      push(kLeadFirst + index / (kNumVowels * kNumTrails));
      push(kVowelFirst + index / kNumTrails % kNumVowels);
      if (index % kNumTrails != 0) push(kTrailFirst + index % kNumTrails);
    } else if (const Decomposition* entry = decomposition(c)) {
      for (uint32_t part : entry->parts) {
        if (part != 0) push(part);
      }
    } else {
      push(c);
    }
  }
  for (size_t begin = 0; begin < items.size();) {
    size_t end = begin + 1;
    while (end < items.size() && items[end].combining_class != 0) ++end;
    const size_t first = items[begin].combining_class == 0 ? begin + 1 : begin;
    std::stable_sort(
        items.begin() + static_cast<ptrdiff_t>(first), items.begin() + static_cast<ptrdiff_t>(end),
        [](const Item& a, const Item& b) { return a.combining_class < b.combining_class; });
    begin = end;
  }
  return items;
}

// Decomposes, orders and composes `text`, which starts at a code point that nothing before it
// composes with.
void append_nfc_slowly(std::string& out, std::string_view text) {
  std::vector<Item> items = decomposed(text);
  size_t kept = 0;
  ptrdiff_t starter = -1;
  for (size_t i = 0; i < items.size(); ++i) {
    const Item item = items[i];
    // Between the starter and `item` lie only marks of lower class, unless one of the same or a
    // higher class was kept: then `item` is blocked.
    const bool follows_starter = starter >= 0 && kept == static_cast<size_t>(starter) + 1;
    const bool is_blocked =
        !follows_starter && (item.combining_class == 0 || kept == 0 ||
                             items[kept - 1].combining_class >= item.combining_class);
    if (starter >= 0 && !is_blocked) {
      if (const uint32_t composed =
              compose(items[static_cast<size_t>(starter)].code_point, item.code_point)) {
        items[static_cast<size_t>(starter)].code_point = composed;
        continue;
      }
    }
    if (item.combining_class == 0) starter = static_cast<ptrdiff_t>(kept);
    items[kept++] = item;
  }
  for (size_t i = 0; i < kept; ++i) append_code_point(out, items[i].code_point);
}

struct ByteLevelTable {
  std::array<uint16_t, 256> character;
  std::array<int16_t, 0x144> byte;
  ByteLevelTable() {
    byte.fill(-1);
    uint16_t next = 256;
    for (int i = 0; i < 256; ++i) {
      const bool prints = (i >= '!' && i <= '~') || (i >= 0xA1 && i != 0xAD);
      character[static_cast<size_t>(i)] = prints ? static_cast<uint16_t>(i) : next++;
      byte[character[static_cast<size_t>(i)]] = static_cast<int16_t>(i);
    }
    GRADUS_CHECK(next == byte.size(), "byte-level alphabet has another size");
  }
};

const ByteLevelTable& byte_level_table() {
  static const ByteLevelTable table;
  return table;
}

}  // namespace

const PropertyTable& PropertyTable::instance() {
  static const PropertyTable table;
  return table;
}

PropertyTable::PropertyTable() {
  std::vector<uint8_t> flat(kNumCodePoints);
  const auto mark = [&flat](const CodePointRange* ranges, size_t size, uint8_t property) {
    for (size_t i = 0; i < size; ++i) {
      for (uint32_t c = ranges[i].first; c <= ranges[i].last; ++c) flat[c] |= property;
    }
  };
  mark(kLetterRanges, kLetterRangesSize, kLetter);
  mark(kNumberRanges, kNumberRangesSize, kNumber);
  mark(kMarkRanges, kMarkRangesSize, kMark);
  mark(kSpaceRanges, kSpaceRangesSize, kSpace);
  mark(kNumericRanges, kNumericRangesSize, kNumeric);
  mark(kWordRanges, kWordRangesSize, kWord);
  for (uint32_t page = 0; page < std::size(page_of_); ++page) {
    const char* content = reinterpret_cast<const char*>(flat.data()) + page * 256;
    size_t stored = 0;
    while (stored < storage_.size() && std::memcmp(storage_.data() + stored, content, 256) != 0) {
      stored += 256;
    }
    if (stored == storage_.size()) storage_.append(content, 256);
    GRADUS_CHECK(stored / 256 < 256, "too many distinct pages of properties");
    page_of_[page] = static_cast<uint8_t>(stored / 256);
  }
  pages_ = reinterpret_cast<const uint8_t*>(storage_.data());
}

void append_code_point(std::string& out, uint32_t c) {
  const auto put = [&out](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 63));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 63));
    put(0x80 | (c & 63));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 63));
    put(0x80 | (c >> 6 & 63));
    put(0x80 | (c & 63));
  }
}

void append_nfd(std::string& out, std::string_view text) {
  for (const Item& item : decomposed(text)) append_code_point(out, item.code_point);
}

void append_nfc(std::string& out, std::string_view text) {
  const NfcSuspects& suspects = NfcSuspects::instance();
  // Runs from the code point before a suspect to the next one that is none are composed; the rest
  // is copied.
  size_t copied = 0;
  size_t previous = 0;
  for (size_t i = 0; i < text.size();) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      previous = i++;
      continue;
    }
    const auto [c, length] = decode_code_point(text.data() + i);
    if (!suspects[c]) {
      previous = i;
      i += length;
      continue;
    }
    size_t end = i + length;
    while (end < text.size()) {
      const auto next = decode_code_point(text.data() + end);
      if (!suspects[next.value]) break;
      end += next.length;
    }
    const size_t begin = std::max(copied, previous);
    out.append(text.substr(copied, begin - copied));
    append_nfc_slowly(out, text.substr(begin, end - begin));
    copied = previous = i = end;
  }
  out.append(text.substr(copied));
}

uint32_t byte_level_character(uint8_t byte) { return byte_level_table().character[byte]; }

int byte_of_character(uint32_t code_point) {
  const auto& bytes = byte_level_table().byte;
  return code_point < bytes.size() ? bytes[code_point] : -1;
}

void append_byte_level(std::string& out, std::string_view text) {
  const auto& characters = byte_level_table().character;
  for (char c : text) append_code_point(out, characters[static_cast<unsigned char>(c)]);
}

void LossyUtf8::append(std::string& out, std::string_view bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    const auto byte = static_cast<unsigned char>(bytes[i]);
    if (num_pending_ == 0 && byte < 0x80) {
      out.push_back(static_cast<char>(byte));
    } else {
      push(out, byte);
    }
  }
}

void LossyUtf8::push(std::string& out, unsigned char byte) {
  if (num_pending_ > 0) {
    if (byte >= low_ && byte <= high_) {
      pending_[num_pending_++] = static_cast<char>(byte);
      low_ = 0x80;
      high_ = 0xBF;
      if (num_pending_ == expected_) {
        out.append(pending_, num_pending_);
        num_pending_ = 0;
      }
      return;
    }
    out.append(kReplacement);
    num_pending_ = 0;
  }
  if (byte < 0x80) {
    out.push_back(static_cast<char>(byte));
  } else if (byte < 0xC2 || byte > 0xF4) {
    out.append(kReplacement);
  } else {
    pending_[num_pending_++] = static_cast<char>(byte);
    expected_ = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
    // Overlong forms, surrogates and values above U+10FFFF show in the second byte.
    low_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
    high_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
  }
}

void LossyUtf8::finish(std::string& out) {
  if (num_pending_ > 0) out.append(kReplacement);
  num_pending_ = 0;
  low_ = 0x80;
  high_ = 0xBF;
}

}  // namespace gradus::data::internal
