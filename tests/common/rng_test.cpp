// SPDX-License-Identifier: Apache-2.0
#include "common/rng.h"

#include <gtest/gtest.h>

namespace gradus {
namespace {

// Known answers published with Random123 (kat_vectors, philox4x32 10).
TEST(Philox, MatchesTheKnownAnswers) {
  EXPECT_EQ(philox4x32_10(0, {0, 0, 0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32_10(~uint64_t{0}, {~0u, ~0u, ~0u, ~0u}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10(0x299f31d0a4093822ull, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RngSequence, DrawsBelowTheBoundAndReachesBothEnds) {
  RngSequence rng(1, RngStream::kTask);
  bool low = false, high = false;
  for (int i = 0; i < 1000; ++i) {
    const int64_t draw = rng.between(-2, 3);
    ASSERT_GE(draw, -2);
    ASSERT_LE(draw, 3);
    low |= draw == -2;
    high |= draw == 3;
  }
  EXPECT_TRUE(low && high);
}

TEST(RngSequence, StreamsOfOneKeyDiffer) {
  EXPECT_NE(RngSequence(1, RngStream::kTask).next_u64(),
            RngSequence(1, RngStream::kInit).next_u64());
}

TEST(Hash64, DependsOnOrderAndLength) {
  EXPECT_NE(hash64({1, 2}), hash64({2, 1}));
  EXPECT_NE(hash64({0}), hash64({0, 0}));
  EXPECT_NE(hash64("abcdefgh"), hash64(std::string_view("abcdefgh\0", 9)));
}

}  // namespace
}  // namespace gradus
