// SPDX-License-Identifier: Apache-2.0
#include "data/internal/unicode.h"

#include <gtest/gtest.h>

#include <random>

#include "common/strings.h"

namespace gradus::data::internal {
namespace {

std::string nfc(std::string_view text) {
  std::string out;
  append_nfc(out, text);
  return out;
}

TEST(Nfc, ComposesByHandComputedExamples) {
  EXPECT_EQ(nfc("plain"), "plain");
  EXPECT_EQ(nfc("cafe\u0301"), "caf\u00e9");
  // Class 220 (dot below) sorts before 230 (dot above), then both compose with s.
  EXPECT_EQ(nfc("s\u0307\u0323"), "\u1e69");
  // q has no composite: the marks are only ordered.
  EXPECT_EQ(nfc("q\u0307\u0323"), "q\u0323\u0307");
  // A mark of the same class blocks the one behind it.
  EXPECT_EQ(nfc("a\u0304\u0301"), "\u0101\u0301");
  EXPECT_EQ(nfc("\u212b"), "\u00c5");              // a singleton
  EXPECT_EQ(nfc("\u0958"), "\u0915\u093c");        // excluded from composition
  EXPECT_EQ(nfc("\u1112\u1161\u11ab"), "\ud55c");  // Hangul by arithmetic
  EXPECT_EQ(nfc("\uac00\u11a8x"), "\uac01x");
  EXPECT_EQ(nfc("\u0301e\u0301"), "\u0301\u00e9");
}

TEST(Nfc, IsIdempotentAndIndependentOfNeighbours) {
  const std::string_view parts[] = {"a",      "e",      "\u0301", "\u0323", "\u0327",
                                    "\u00e9", "\u1100", "\u1161", "\u11a8", "\uac00",
                                    "\u0915", "\u093c", "\u0344", "\u0345"};
  std::mt19937 random(5);
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (size_t i = 0, size = random() % 10; i < size; ++i)
      text += parts[random() % std::size(parts)];
    const std::string once = nfc(text);
    ASSERT_EQ(nfc(once), once) << text;
    // A digit composes with nothing, so what follows it is composed on its own.
    ASSERT_EQ(nfc("0" + text + "0" + text), nfc("0" + text) + nfc("0" + text)) << text;
  }
}

TEST(ByteLevel, WritesEveryByteAsAnotherCharacter) {
  EXPECT_EQ(byte_level_character('!'), uint32_t{'!'});
  EXPECT_EQ(byte_level_character(' '), 0x120u);
  EXPECT_EQ(byte_level_character('\n'), 0x10Au);
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(byte_of_character(byte_level_character(static_cast<uint8_t>(byte))), byte);
  }
  EXPECT_EQ(byte_of_character(' '), -1);
  EXPECT_EQ(byte_of_character(0x4E00), -1);
}

TEST(LossyUtf8, ReplacesMaximalPartsHoweverBytesAreCut) {
  // E2 82 is the start of a code point, FF is none, F0 9F 98 80 is one, ED A0 80 is a surrogate
  // (three parts).
  const std::string bytes = "a\xE2\x82zb\xFF\xF0\x9F\x98\x80\xED\xA0\x80\xF0\x9F";
  const std::string expected = "a\ufffdzb\ufffd\U0001f600\ufffd\ufffd\ufffd\ufffd";
  for (size_t cut = 0; cut <= bytes.size(); ++cut) {
    LossyUtf8 utf8;
    std::string text;
    utf8.append(text, std::string_view(bytes).substr(0, cut));
    EXPECT_EQ(first_invalid_utf8(text), std::nullopt);
    utf8.append(text, std::string_view(bytes).substr(cut));
    utf8.finish(text);
    EXPECT_EQ(text, expected) << cut;
  }
}

}  // namespace
}  // namespace gradus::data::internal
