// SPDX-License-Identifier: Apache-2.0
#include "data/internal/pattern.h"

#include <algorithm>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "common/check.h"
#include "data/internal/unicode.h"
#include "data/internal/unicode_tables.h"

namespace gradus::data::internal {
namespace {

// Backtracking steps for one match. The patterns of the known families need less than a hundred
// times the length of a pretoken; a pattern that explodes stops after a fraction of a second.
constexpr uint32_t kMatchLimit = 10'000'000;

std::string pcre2_message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

uint32_t stand_in(uint32_t code_point) {
  const auto end = kStandIns + kStandInsSize;
  const auto range =
      std::lower_bound(kStandIns, end, code_point,
                       [](const StandIn& entry, uint32_t value) { return entry.last < value; });
  return range != end && range->first <= code_point ? range->stand_in : code_point;
}

// PCRE2's tables are older than those of `tokenizers`: a code point that they lack is exchanged for
// one of the same category and length. Returns an empty text when nothing had to be exchanged.
std::string exchange_newer_code_points(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size();) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const auto [c, length] = decode_code_point(text.data() + i);
    const uint32_t other = stand_in(c);
    if (other != c) {
      if (result.empty()) result = text;
      std::string bytes;
      append_code_point(bytes, other);
      GRADUS_CHECK(bytes.size() == length, "stand-in has another length");
      result.replace(i, length, bytes);
    }
    i += length;
  }
  return result;
}

// The first construct of `pattern` that PCRE2 reads otherwise than Oniguruma does, or an empty
// text.
std::string unlike_construct(std::string_view pattern) {
  bool is_in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const std::string_view rest = pattern.substr(i);
    if (rest[0] == '\\' && rest.size() > 1) {
      // \w and \b have other word characters; the others have other meanings or none.
      if (std::string_view("wWbBhHXRKGgykcCMuNOoQE").find(rest[1]) != std::string_view::npos) {
        return std::string(rest.substr(0, 2));
      }
      if (rest.starts_with("\\p{^")) return "\\p{^";
      // The braces of a category are no bounds.
      const bool is_category =
          (rest[1] == 'p' || rest[1] == 'P') && rest.substr(2).starts_with("{");
      i += is_category ? std::min(rest.find('}'), rest.size() - 1) : 1;
    } else if (is_in_class) {
      // Sets inside sets, classes by name among them, and intersections.
      if (rest[0] == '[' || rest.starts_with("&&"))
        return std::string(rest.substr(0, rest[0] == '[' ? 1 : 2));
      if (rest[0] == ']') is_in_class = false;
    } else if (rest[0] == '[') {
      is_in_class = true;
      if (rest.substr(1).starts_with("]") || rest.substr(1).starts_with("^]")) return "[]";
      if (rest.substr(1).starts_with("^")) ++i;
    } else {
      // Bounds without a lower one, possessive bounds, and options whose letters differ.
      for (const char* construct : {"{,", "}+", "(?m", "(?s", "(?x", "(?~", "(*"}) {
        if (rest.starts_with(construct)) return construct;
      }
    }
  }
  return {};
}

}  // namespace

Result<std::shared_ptr<const Pattern>> Pattern::compile(const std::string& pattern) {
  if (const std::string construct = unlike_construct(pattern); !construct.empty()) {
    return invalid_argument("unsupported '{}' in the regular expression '{}'", construct, pattern);
  }
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, context);
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    return invalid_argument("the regular expression '{}' cannot be read: {} at byte {}", pattern,
                            pcre2_message(error), offset);
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it matching is slower, no less right
  return std::shared_ptr<const Pattern>(new Pattern(pattern, code));
}

Pattern::~Pattern() { pcre2_code_free(static_cast<pcre2_code*>(code_)); }

Pattern::Matcher::Matcher(const Pattern& pattern, std::string_view text)
    : pattern_(pattern),
      text_(text),
      stand_in_text_(exchange_newer_code_points(text)),
      match_data_(pcre2_match_data_create(1, nullptr)) {
  GRADUS_CHECK(match_data_ != nullptr, "out of memory");
  if (!stand_in_text_.empty()) text_ = stand_in_text_;
}

Pattern::Matcher::~Matcher() { pcre2_match_data_free(static_cast<pcre2_match_data*>(match_data_)); }

Result<std::optional<Span>> Pattern::Matcher::next() {
  thread_local const std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> context =
      [] {
        pcre2_match_context* limits = pcre2_match_context_create(nullptr);
        pcre2_set_match_limit(limits, kMatchLimit);
        return std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)>(
            limits, pcre2_match_context_free);
      }();
  auto* code = static_cast<pcre2_code*>(pattern_.code_);
  auto* data = static_cast<pcre2_match_data*>(match_data_);
  // The text was checked once by encode(); checking it for every match would make the search
  // quadratic.
  while (position_ <= text_.size()) {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
    int count = pcre2_match(code, subject, text_.size(), position_, PCRE2_NO_UTF_CHECK, data,
                            context.get());
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) {
      count = pcre2_match(code, subject, text_.size(), position_, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                          data, context.get());
    }
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      return invalid_argument("the regular expression '{}' gave up at byte {} of its text: {}",
                              pattern_.text_, position_, pcre2_message(count));
    }
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data);
    const Span match{offsets[0], offsets[1]};
    if (match.begin == match.end && last_end_ == match.end) {
      if (position_ == text_.size()) break;
      position_ += decode_code_point(text_.data() + position_).length;
      continue;
    }
    position_ = match.end;
    last_end_ = match.end;
    return std::optional<Span>(match);
  }
  position_ = text_.size() + 1;
  return std::optional<Span>();
}

}  // namespace gradus::data::internal
