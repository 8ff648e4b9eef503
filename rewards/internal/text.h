// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// What checks of text share. All take time linear in the text and stand bytes that are no UTF-8.
namespace gradus::rewards {

// Responses are judged by their last 64 KiB where an answer is looked for.
inline constexpr size_t kMaxTailBytes = 64 * 1024;
std::string_view tail(std::string_view text);

// What a reader sees: the text behind the last </think>; nothing where a <think> does not end.
std::optional<std::string_view> visible_part(std::string_view response);

struct Character {
  int32_t code = -1;  // -1: a byte that is no UTF-8
  size_t size = 1;    // in bytes
};
Character character_at(std::string_view text, size_t at);
bool is_word_character(int32_t code);  // letter, mark, digit or underscore
bool is_upper(int32_t code);
bool is_lower(int32_t code);

// Runs of word characters.
std::vector<std::string_view> words_of(std::string_view text);
// Runs of what is not white space.
std::vector<std::string_view> fields_of(std::string_view text);

// Case folded; text that is not UTF-8 by its ASCII letters alone.
std::string folded(std::string_view text);

// Folded, without ASCII punctuation and the articles a, an, the, one space between words: SQuAD's
// normalisation (Rajpurkar et al. 2016, arXiv:1606.05250).
std::string normalised_answer(std::string_view text);

// Where `word` stands in `text` from `from` on with no word character touching it; npos if nowhere.
size_t find_word(std::string_view text, std::string_view word, size_t from);

}  // namespace gradus::rewards
