// SPDX-License-Identifier: Apache-2.0
#include "data/internal/scanner.h"

#include <gtest/gtest.h>

#include <random>

#include "data/internal/pattern.h"
#include "data/internal/unicode.h"

namespace gradus::data::internal {
namespace {

std::vector<std::string> scan(const ScannerRules& rules, std::string_view text) {
  std::vector<std::string> pieces;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = scan_piece(rules, text, begin);
    pieces.emplace_back(text.substr(begin, end - begin));
    begin = end;
  }
  return pieces;
}

std::vector<std::string> match(const Pattern& pattern, std::string_view text) {
  std::vector<std::string> pieces;
  Pattern::Matcher matcher(pattern, text);
  for (auto span = matcher.next(); span.ok() && *span; span = matcher.next()) {
    pieces.emplace_back(text.substr((*span)->begin, (*span)->end - (*span)->begin));
  }
  return pieces;
}

constexpr auto kGpt2 = ScannerRules::Form::kGpt2;
constexpr auto kLlama3 = ScannerRules::Form::kLlama3;
const ScannerRules kAllRules[] = {{kGpt2, 1, false},   {kLlama3, 1, false}, {kLlama3, 2, false},
                                  {kLlama3, 3, false}, {kLlama3, 1, true},  {kLlama3, 3, true}};

TEST(Scanner, CutsByHandComputedExamples) {
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(scan({kGpt2}, "It's 12a  b\n"), (Pieces{"It", "'s", " 12", "a", " ", " b", "\n"}));
  EXPECT_EQ(scan({kLlama3, 3}, "IT'S 1234 (x)\n\n y"),
            (Pieces{"IT", "'S", " ", "123", "4", " (", "x", ")\n\n", " y"}));
  EXPECT_EQ(scan({kLlama3, 1}, "a 12"), (Pieces{"a", " ", "1", "2"}));
  // U+0301 is a mark: apart from its letter for Llama-3 and Qwen2, a letter for Qwen3.5.
  EXPECT_EQ(scan({kLlama3, 1}, "e\u0301t"), (Pieces{"e", "\u0301t"}));
  EXPECT_EQ(scan({kLlama3, 1, true}, "e\u0301t"), (Pieces{"e\u0301t"}));
}

TEST(Scanner, KnowsItsOwnPatterns) {
  for (const ScannerRules& rules : kAllRules)
    EXPECT_EQ(scanner_rules(scanner_pattern(rules)), rules);
  EXPECT_EQ(scanner_rules("\\s+"), std::nullopt);
}

// The regular expression engine is the oracle: the scanners must cut as the expression that they
// stand for.
TEST(Scanner, CutsLikeTheRegularExpression) {
  const std::string_view parts[] = {
      "a",      "Z",      "s",      "'",      "'",          "l",          "S",      "re",
      "0",      "9",      " ",      " ",      "\t",         "\n",         "\r",     "\r\n",
      "!",      "-",      "\u00e9", "\u0301", "\u0661",     "\u00bd",     "\u2003", "\u0085",
      "\u00a0", "\u4e00", "\u017f", "\u180e", "\U0001f600", "\U00010400", "\u0378"};
  std::mt19937 random(11);
  for (const ScannerRules& rules : kAllRules) {
    const auto pattern = Pattern::compile(scanner_pattern(rules));
    ASSERT_TRUE(pattern.ok()) << pattern.status().message();
    for (int round = 0; round < 4000; ++round) {
      std::string text;
      for (size_t i = 0, size = 1 + random() % 14; i < size; ++i)
        text += parts[random() % std::size(parts)];
      ASSERT_EQ(scan(rules, text), match(**pattern, text)) << scanner_pattern(rules) << "\n"
                                                           << text;
    }
  }
}

// PCRE2 has an older Unicode than the package whose ids we reproduce; stand-ins make up for it.
TEST(Pattern, SeesEveryCodePointAsTheTablesDo) {
  const PropertyTable& properties = PropertyTable::instance();
  const std::pair<const char*, Property> classes[] = {
      {"\\p{L}", kLetter}, {"\\p{N}", kNumber}, {"\\p{M}", kMark}, {"\\s", kSpace}};
  for (const auto& [expression, property] : classes) {
    const auto pattern = Pattern::compile(expression);
    ASSERT_TRUE(pattern.ok());
    for (uint32_t c = 0; c < 0x110000; ++c) {
      if (c >= 0xD800 && c < 0xE000) continue;
      std::string text;
      append_code_point(text, c);
      ASSERT_EQ(match(**pattern, text).size(), (properties[c] & property) != 0 ? 1u : 0u)
          << expression << " U+" << std::hex << c;
    }
  }
}

TEST(Pattern, StopsAtTheMatchLimit) {
  const auto pattern = Pattern::compile("(a+)+$");
  ASSERT_TRUE(pattern.ok());
  const std::string text = std::string(60, 'a') + "b";
  Pattern::Matcher matcher(**pattern, text);
  EXPECT_EQ(matcher.next().status().message(),
            "the regular expression '(a+)+$' gave up at byte 0 of its text: match limit exceeded");
}

TEST(Pattern, RefusesWhatOtherEnginesReadOtherwise) {
  for (const auto& [pattern, construct] : {std::pair("a\\b", "\\b"),
                                           {"\\w+", "\\w"},
                                           {"[a[bc]]", "["},
                                           {"[[:alpha:]]", "["},
                                           {"a{,3}", "{,"},
                                           {"a{1,3}+", "}+"},
                                           {"(?m:a)", "(?m"},
                                           {"[a&&b]", "&&"},
                                           {"\\p{^L}", "\\p{^"},
                                           {"[]a]", "[]"}}) {
    EXPECT_EQ(Pattern::compile(pattern).status().message(),
              fmt::format("unsupported '{}' in the regular expression '{}'", construct, pattern));
  }
  for (const char* pattern : {"\\p{L}+", "[\\p{L}]+", "[^\\[\\]]", "(?i:a)b{1,3}", "\\[[a-c]\\]"}) {
    EXPECT_TRUE(Pattern::compile(pattern).ok()) << pattern;
  }
}

TEST(Pattern, FindsEmptyMatchesOnce) {
  const auto pattern = Pattern::compile("x*");
  ASSERT_TRUE(pattern.ok());
  // Empty before "a", then "xx"; the empty match right behind "xx" does not count, the one behind
  // "b" does.
  EXPECT_EQ(match(**pattern, "axxb"), (std::vector<std::string>{"", "xx", ""}));
}

}  // namespace
}  // namespace gradus::data::internal
