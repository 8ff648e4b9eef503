// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "common/status.h"
#include "retriever/corpus.h"

// Search-R1's text of found passages (arXiv:2503.09516). Thread-safe functions.
namespace gradus::rollout {

// "Doc 1(Title: ...) text", after a line break if `number` is not 1.
std::string passage_line(int64_t number, std::string_view title, std::string_view text);

// The lines of passages of a corpus, in the order given. The corpus' error if one cannot be read.
Result<std::string> passages_text(const retriever::Corpus& corpus, std::span<const int64_t> ids);

}  // namespace gradus::rollout
