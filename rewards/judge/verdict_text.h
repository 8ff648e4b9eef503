// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rewards/judge.h"

// What a judge is asked and how its answer is read. The response stands between lines with a nonce
// that nobody who wrote it can know, and a verdict counts only if it repeats the nonce: text in the
// response can neither close its fence nor bring a verdict of its own.
namespace gradus::rewards::judge {

// The messages of a chat request as a JSON list. All items have the prompt, response and reference
// of the first; criteria are numbered from 1.
std::string verdict_messages(std::span<const JudgeItem> items, std::string_view nonce);

// The answer of the judge: {"nonce": "...", "c": [{"id": 1, "applicable": 1, "score": 0.5, "why":
// "..."}]}, alone or as a fenced block, after any </think>. InvalidArgument if it is anything else,
// has another nonce, or an id twice. A criterion without a sound entry is kError by itself.
Result<std::vector<JudgeVerdict>> parse_verdicts(std::string_view text, size_t num_criteria,
                                                 std::string_view nonce);

// Longer responses are shown to the judge without their middle.
constexpr size_t kMaxShownBytes = 48 << 10;

}  // namespace gradus::rewards::judge
