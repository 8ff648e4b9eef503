// SPDX-License-Identifier: Apache-2.0
#include "data/internal/bert.h"

#include <algorithm>

#include "data/internal/unicode.h"
#include "data/internal/unicode_tables.h"

namespace gradus::data::internal {
namespace {

bool is_in(const CodePointRange* ranges, size_t size, uint32_t c) {
  const auto range =
      std::lower_bound(ranges, ranges + size, c,
                       [](const CodePointRange& one, uint32_t value) { return one.last < value; });
  return range != ranges + size && range->first <= c;
}

bool is_ideograph(uint32_t c) {
  constexpr CodePointRange kIdeographs[] = {
      {0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},   {0x20000, 0x2A6DF},
      {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F}};
  return c >= 0x3400 && is_in(kIdeographs, std::size(kIdeographs), c);
}

// Runs may interleave, two at a time: one of step 2 and what stands between its members.
uint32_t lowered(uint32_t c) {
  const LowerRun* run =
      std::upper_bound(kLowerRuns, kLowerRuns + kLowerRunsSize, c,
                       [](uint32_t value, const LowerRun& one) { return value < one.first; });
  for (int i = 0; i < 2 && run != kLowerRuns; ++i) {
    --run;
    if (c <= run->last && (c - run->first) % run->step == 0) {
      return static_cast<uint32_t>(static_cast<int32_t>(c) + run->offset);
    }
  }
  return c;
}

template <class Body>
void for_each_code_point(std::string_view text, const Body& body) {
  for (size_t i = 0; i < text.size();) {
    const auto [c, length] = decode_code_point(text.data() + i);
    body(c);
    i += length;
  }
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

}  // namespace

void append_bert_normalised(std::string& out, std::string_view text, const BertRules& rules) {
  std::string cleaned;
  for_each_code_point(text, [&](uint32_t c) {
    if (rules.cleans) {
      if (is_in(kCleanedRanges, kCleanedRangesSize, c)) return;
      if (is_in(kCleanSpaceRanges, kCleanSpaceRangesSize, c)) c = ' ';
    }
    const bool is_apart = rules.spaces_ideographs && is_ideograph(c);
    if (is_apart) cleaned.push_back(' ');
    append_code_point(cleaned, c);
    if (is_apart) cleaned.push_back(' ');
  });
  std::string stripped;
  if (rules.strips_accents && !is_ascii(cleaned)) {
    std::string marked;
    append_nfd(marked, cleaned);
    for_each_code_point(marked, [&](uint32_t c) {
      if (!is_in(kNonspacingRanges, kNonspacingRangesSize, c)) append_code_point(stripped, c);
    });
  } else {
    stripped = std::move(cleaned);
  }
  if (!rules.lowers) {
    out += stripped;
    return;
  }
  for_each_code_point(stripped, [&](uint32_t c) {
    if (c == 0x130) {
      out += "i\u0307";
    } else {
      append_code_point(out, lowered(c));
    }
  });
}

bool is_bert_space(uint32_t c) { return is_in(kSpaceRanges, kSpaceRangesSize, c); }

bool is_bert_punctuation(uint32_t c) {
  return is_in(kPunctuationRanges, kPunctuationRangesSize, c);
}

}  // namespace gradus::data::internal
