// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/rng.h"
#include "federated/compression.h"
#include "federated/replay_guard.h"

namespace gradus::federated {
namespace {

constexpr CompressionConfig kInt8{.kind = Compression::kInt8};
constexpr CompressionConfig kOnePercent{.kind = Compression::kTopK, .fraction = 0.01};

std::vector<float> normals(size_t count, uint64_t seed) {
  RngSequence rng(seed, RngStream::kTask);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(rng.normal());
  return values;
}

std::vector<float> round_trip(const CompressionConfig& config, const std::vector<float>& values) {
  const auto bytes = compress(config, values);
  EXPECT_TRUE(bytes.ok()) << bytes.status().message();
  const auto decoded = decompress(*bytes, static_cast<int64_t>(values.size()));
  EXPECT_TRUE(decoded.ok()) << decoded.status().message();
  return *decoded;
}

TEST(Int8Compression, RoundsToAPowerOfTwoByBlock) {
  // 127 * 2^-6 = 1.98 >= 1.5, and half of it is less: steps of 2^-6.
  std::vector<float> values = {1.5f, 0.01f, -0.008f, 0.0078124f};
  EXPECT_EQ(round_trip(kInt8, values), (std::vector<float>{1.5f, 0x1.0p-6f, -0x1.0p-6f, 0.0f}));
  // The next block has a scale of its own; so have zeros, the largest floats and the smallest.
  values.resize(64);
  values.push_back(0.0078124f);
  EXPECT_NEAR(round_trip(kInt8, values)[64], 0.0078124f, 0.0078124f / 127);
  for (const float value : {0.0f, std::numeric_limits<float>::max(), 127.0f, 127.5f, -128.0f,
                            1e-36f, std::numeric_limits<float>::denorm_min()}) {
    const float got = round_trip(kInt8, {value, -value})[1];
    EXPECT_NEAR(got, -value, std::max(std::fabs(value) / 100.0, 1e-40)) << value;
  }
}

TEST(Int8Compression, IsOffByHalfAStepAndFourTimesSmaller) {
  const std::vector<float> values = normals(100'000, 1);
  const std::vector<float> got = round_trip(kInt8, values);
  for (size_t i = 0; i < values.size(); ++i) {
    float largest = 0;
    for (size_t j = i / 64 * 64; j < std::min(i / 64 * 64 + 64, values.size()); ++j) {
      largest = std::max(largest, std::fabs(values[j]));
    }
    ASSERT_LE(std::fabs(got[i] - values[i]), largest / 127)
        << i;  // a step is below 2 largest / 127
  }
  EXPECT_GT(4. * 100'000 / static_cast<double>(compress(kInt8, values)->size()), 3.9);
}

TEST(TopKCompression, KeepsTheLargestBySizeAndOfEqualsTheFirst) {
  EXPECT_EQ(round_trip({.kind = Compression::kTopK, .fraction = 0.5}, {1, -3, 2, -2, 0, 2}),
            (std::vector<float>{0, -3, 2, -2, 0, 0}));
  EXPECT_EQ(round_trip(kOnePercent, {1, -3, 2}), (std::vector<float>{0, -3, 0}));
  const std::vector<float> values = normals(100'000, 2);
  EXPECT_GT(4. * 100'000 / static_cast<double>(compress(kOnePercent, values)->size()), 45);
}

class EveryCompression : public ::testing::TestWithParam<CompressionConfig> {};
INSTANTIATE_TEST_SUITE_P(Kinds, EveryCompression, ::testing::Values(kInt8, kOnePercent));

TEST_P(EveryCompression, WithErrorFeedbackLosesNothingOverTheRounds) {
  // Updates are multiples of 2^-12 below 1, and so are all sums of 40: every addition is exact, and
  // the identity must hold to the bit.
  constexpr size_t kValues = 1000;
  ErrorFeedback feedback(kValues);
  std::vector<double> sent(kValues), made(kValues);
  RngSequence rng(3, RngStream::kTask);
  bool has_remainder = false;
  for (int round = 0; round < 40; ++round) {
    std::vector<float> update(kValues);
    for (float& value : update) value = static_cast<float>(rng.between(-4095, 4095)) * 0x1.0p-12f;
    const auto bytes = feedback.compress(GetParam(), update);
    const auto decoded = decompress(*bytes, kValues);
    for (size_t i = 0; i < kValues; ++i) {
      made[i] += update[i];
      sent[i] += (*decoded)[i];
      ASSERT_EQ(made[i], sent[i] + feedback.remainder()[i]) << "round " << round << ", value " << i;
      has_remainder = has_remainder || feedback.remainder()[i] != 0;
    }
  }
  EXPECT_TRUE(has_remainder);
}

TEST_P(EveryCompression, LeavesARemainderThatIsExact) {
  // Of any floats: decoded and remainder are the value, without rounding.
  const std::vector<float> values = normals(1000, 4);
  ErrorFeedback feedback(1000);
  const auto decoded = decompress(*feedback.compress(GetParam(), values), 1000);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(static_cast<double>((*decoded)[i]) + feedback.remainder()[i], values[i]) << i;
  }
}

TEST_P(EveryCompression, RefusesWhatIsNotFinite) {
  ErrorFeedback feedback(2);
  ASSERT_TRUE(feedback.compress(GetParam(), std::vector<float>{1, 0.3f}).ok());
  const std::vector<float> before(feedback.remainder().begin(), feedback.remainder().end());
  EXPECT_EQ(feedback.compress(GetParam(), std::vector<float>{1, NAN}).status().message(),
            "update: value 1 is nan; all must be finite");
  EXPECT_TRUE(std::equal(before.begin(), before.end(), feedback.remainder().begin()));
}

TEST(CompressedUpdate, IsRefusedIfItsBytesAreWrong) {
  const std::vector<float> values = {1, 2, 3, 4};
  const std::vector<uint8_t> int8 = *compress(kInt8, values);
  const std::vector<uint8_t> top = *compress({.kind = Compression::kTopK, .fraction = 0.5}, values);
  const auto message = [](std::vector<uint8_t> bytes, auto change, int64_t count = 4) {
    change(bytes);
    return decompress(bytes, count).status().message();
  };
  const std::string where = "compressed update: ";
  EXPECT_EQ(message(int8, [](auto& b) { b.resize(9); }), where + "9 bytes; the head alone has 16");
  EXPECT_EQ(message(
                int8, [](auto&) {}, 5),
            where + "of 4 values; the model has 5");
  EXPECT_EQ(message(int8, [](auto& b) { b[0] = 7; }),
            where + "kind 7; it must be 1 (int8) or 2 (top-k)");
  EXPECT_EQ(message(int8, [](auto& b) { b.pop_back(); }),
            where + "4 bytes of int8 for 4 values; there must be 5");
  EXPECT_EQ(message(int8, [](auto& b) { b[18] = 128; }),
            where + "value 1 has a code that none has");
  EXPECT_EQ(message(int8,
                    [](auto& b) {
                      b[16] = 255;
                      b[17] = 127;
                    }),
            "");
  EXPECT_EQ(message(top, [](auto& b) { b.pop_back(); }),
            where + "15 bytes of top-k for 4 values; there must be 8 for each of 1 to 4");
  EXPECT_EQ(message(top, [](auto& b) { b[20] = 4; }),
            where + "place 4 after 2; places must increase and be below 4");
  EXPECT_EQ(message(top, [](auto& b) { b[20] = 2; }),
            where + "place 2 after 2; places must increase and be below 4");
  EXPECT_EQ(message(top,
                    [](auto& b) {
                      const float bad = INFINITY;
                      std::memcpy(b.data() + 24, &bad, 4);
                    }),
            where + "value 2 is not finite");
}

TEST(ReplayGuard, LetsAMessageInOnce) {
  ReplayGuard guard(2);
  guard.start_round(7);
  EXPECT_TRUE(guard.admit(7, 3, 0xabc).ok());
  EXPECT_TRUE(guard.admit(6, 3, 0xabc).ok());  // one round late, as the guard allows
  EXPECT_TRUE(guard.admit(7, 4, 0xabc).ok());
  EXPECT_EQ(guard.admit(7, 3, 0xabc).message(),
            "client 3: the message of round 7 with nonce 0000000000000abc came before; a replay, "
            "refused");
  EXPECT_EQ(guard.admit(7, 3, 0xabd).message(),
            "client 3: a second update in round 7; a client sends one; refused");
  guard.start_round(8);
  EXPECT_FALSE(guard.admit(7, 3, 0xabc).ok());  // still known
  EXPECT_EQ(guard.admit(6, 5, 1).message(),
            "client 5: a message of round 6; rounds 7 to 8 are open; refused");
  EXPECT_EQ(guard.admit(9, 5, 1).message(),
            "client 5: a message of round 9; rounds 7 to 8 are open; refused");
}

}  // namespace
}  // namespace gradus::federated
