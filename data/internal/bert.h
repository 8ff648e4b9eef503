// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

// BERT's cutting of text (Devlin et al. 2018), as the PyPI `tokenizers` package does it: the
// components BertNormalizer and BertPreTokenizer. Thread-safe.
namespace gradus::data::internal {

struct BertRules {
  bool cleans = true;             // drops controls, makes all white space a space
  bool spaces_ideographs = true;  // a space round each CJK ideograph
  bool strips_accents = true;     // NFD without its nonspacing marks
  bool lowers = true;             // code point by code point: a final sigma is like any other
};

// Appends the normalised `text`, which is valid UTF-8.
void append_bert_normalised(std::string& out, std::string_view text, const BertRules& rules);

// Whether BertPreTokenizer cuts at a code point and drops it, or takes it as a piece of its own.
bool is_bert_space(uint32_t code_point);
bool is_bert_punctuation(uint32_t code_point);

}  // namespace gradus::data::internal
