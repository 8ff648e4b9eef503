// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/text.h"

#include <utf8proc.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "common/strings.h"

namespace gradus::rewards {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

}  // namespace

std::string_view tail(std::string_view text) {
  if (text.size() <= kMaxTailBytes) return text;
  size_t begin = text.size() - kMaxTailBytes;
  while (begin < text.size() && (text[begin] & 0xC0) == 0x80) ++begin;
  return text.substr(begin);
}

std::optional<std::string_view> visible_part(std::string_view response) {
  constexpr std::string_view kEnd = "</think>";
  const size_t end = response.rfind(kEnd);
  const std::string_view rest =
      end == std::string_view::npos ? response : response.substr(end + kEnd.size());
  if (rest.find("<think>") != std::string_view::npos) return std::nullopt;
  return rest;
}

Character character_at(std::string_view text, size_t at) {
  if ((text[at] & 0x80) == 0) return {text[at], 1};
  utf8proc_int32_t code = -1;
  const utf8proc_ssize_t size =
      utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at),
                       static_cast<utf8proc_ssize_t>(std::min<size_t>(text.size() - at, 4)), &code);
  if (size <= 0) return {};
  return {code, static_cast<size_t>(size)};
}

bool is_word_character(int32_t code) {
  if (code < 0) return false;
  if (code < 128) return std::isalnum(code) != 0 || code == '_';
  const auto category = utf8proc_category(code);
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) ||
         (category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_NO);
}

bool is_upper(int32_t code) {
  if (code < 128) return code >= 'A' && code <= 'Z';
  return utf8proc_category(code) == UTF8PROC_CATEGORY_LU;
}

bool is_lower(int32_t code) {
  if (code < 128) return code >= 'a' && code <= 'z';
  return utf8proc_category(code) == UTF8PROC_CATEGORY_LL;
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  size_t begin = 0;
  bool is_inside = false;
  for (size_t i = 0; i < text.size();) {
    const Character c = character_at(text, i);
    const bool is_word = is_word_character(c.code);
    if (is_word && !is_inside) begin = i;
    if (!is_word && is_inside) words.push_back(text.substr(begin, i - begin));
    is_inside = is_word;
    i += c.size;
  }
  if (is_inside) words.push_back(text.substr(begin));
  return words;
}

std::vector<std::string_view> fields_of(std::string_view text) {
  std::vector<std::string_view> fields;
  for (size_t i = 0; i < text.size();) {
    while (i < text.size() && is_space(text[i])) ++i;
    const size_t begin = i;
    while (i < text.size() && !is_space(text[i])) ++i;
    if (i > begin) fields.push_back(text.substr(begin, i - begin));
  }
  return fields;
}

std::string folded(std::string_view text) {
  std::string result(text);
  const auto fold_ascii = [&] {
    for (char& c : result) {
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
    }
    return result;
  };
  if (is_ascii(text)) return fold_ascii();
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &mapped,
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_CASEFOLD));
  if (length < 0) return fold_ascii();
  result.assign(reinterpret_cast<const char*>(mapped), static_cast<size_t>(length));
  std::free(mapped);  // utf8proc allocates with malloc
  return result;
}

std::string normalised_answer(std::string_view text) {
  std::string plain = folded(text);
  std::erase_if(plain, [](char c) { return std::ispunct(static_cast<unsigned char>(c)) != 0; });
  std::string result;
  for (const std::string_view word : fields_of(plain)) {
    if (word == "a" || word == "an" || word == "the") continue;
    if (!result.empty()) result += ' ';
    result += word;
  }
  return result;
}

size_t find_word(std::string_view text, std::string_view word, size_t from) {
  if (word.empty()) return std::string_view::npos;
  for (size_t at = text.find(word, from); at != std::string_view::npos;
       at = text.find(word, at + 1)) {
    size_t before = at;
    while (before > 0 && at - before < 4) {
      --before;
      if ((text[before] & 0xC0) != 0x80) break;
    }
    const size_t after = at + word.size();
    const bool touches_before = at > 0 && is_word_character(character_at(text, before).code);
    const bool touches_after =
        after < text.size() && is_word_character(character_at(text, after).code);
    if (!touches_before && !touches_after) return at;
  }
  return std::string_view::npos;
}

}  // namespace gradus::rewards
