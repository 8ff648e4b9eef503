// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// What the PyPI `tokenizers` package takes code points for, as sorted tables. Several, because its
// parts have Unicode versions of their own: the regular expressions, the Rust standard library
// (Digits), the pattern of added tokens (word characters) and the normaliser.
namespace gradus::data::internal {

struct CodePointRange {
  uint32_t first, last;  // inclusive
};
struct CombiningClassRange {
  uint32_t first, last;
  uint8_t combining_class;  // canonical, never 0
};
struct Decomposition {
  uint32_t code_point;
  uint32_t parts[4];  // full canonical decomposition, zero padded; without Hangul
};
struct Composition {
  uint32_t first, second, composed;  // sorted by (first, second)
};
// Lower case of first, first + step .. last: that plus the offset.
struct LowerRun {
  uint32_t first, last, step;
  int32_t offset;
};
// A code point that is newer than PCRE2's tables, and one of the same category and UTF-8 length in
// them.
struct StandIn {
  uint32_t first, last, stand_in;
};

extern const CodePointRange kLetterRanges[], kNumberRanges[], kMarkRanges[];  // \p{L} \p{N} \p{M}
extern const size_t kLetterRangesSize, kNumberRangesSize, kMarkRangesSize;
extern const CodePointRange kSpaceRanges[];  // \s, and what lstrip and rstrip take
extern const size_t kSpaceRangesSize;
extern const CodePointRange kNumericRanges[],
    kWordRanges[];  // the Digits component; \w of single_word
extern const size_t kNumericRangesSize, kWordRangesSize;
// BERT's normaliser: what cleaning drops and what it makes a space, the marks that stripping
// accents drops; and what BERT's pre-tokenizer takes alone.
extern const CodePointRange kCleanedRanges[], kCleanSpaceRanges[], kNonspacingRanges[],
    kPunctuationRanges[];
extern const size_t kCleanedRangesSize, kCleanSpaceRangesSize, kNonspacingRangesSize,
    kPunctuationRangesSize;
extern const LowerRun kLowerRuns[];  // sorted by first; without U+0130, which becomes two
extern const size_t kLowerRunsSize;
extern const StandIn kStandIns[];
extern const size_t kStandInsSize;
extern const CombiningClassRange kCombiningClasses[];
extern const size_t kCombiningClassesSize;
extern const Decomposition kDecompositions[];
extern const size_t kDecompositionsSize;
extern const Composition kCompositions[];
extern const size_t kCompositionsSize;

}  // namespace gradus::data::internal
