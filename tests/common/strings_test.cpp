// SPDX-License-Identifier: Apache-2.0
#include "common/strings.h"

#include <gtest/gtest.h>

namespace gradus {
namespace {

TEST(NearestName, FindsATypoAndIgnoresTheFarFetched) {
  const std::vector<std::string> names = {"clip_low", "clip_high", "learning_rate"};
  EXPECT_EQ(nearest_name("clip_hihg", names), "clip_high");
  EXPECT_EQ(nearest_name("banana", names), std::nullopt);
  EXPECT_EQ(did_you_mean("learning_rat", names), "; did you mean 'learning_rate'?");
}

TEST(Utf8, AcceptsEveryLengthAndNamesTheFirstBadByte) {
  EXPECT_EQ(first_invalid_utf8("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"), std::nullopt);
  EXPECT_EQ(first_invalid_utf8("ab\xFF"), 2u);
  EXPECT_EQ(first_invalid_utf8("\xED\xA0\x80"), 0u) << "surrogate";
  EXPECT_EQ(first_invalid_utf8("x\xC0\x80"), 1u) << "overlong";
  EXPECT_EQ(first_invalid_utf8("\xE2\x82"), 0u) << "cut short";
  EXPECT_EQ(first_invalid_utf8("\xF4\x90\x80\x80"), 0u) << "beyond U+10FFFF";
}

}  // namespace
}  // namespace gradus
