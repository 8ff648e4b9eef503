// SPDX-License-Identifier: Apache-2.0
#include "kernels/logprob.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "common/rng.h"
#include "kernels/internal/logprob_ref.h"
#include "kernels/isa.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(int64_t v, uint64_t seed, double scale = 3) {
  RngSequence rng(seed, RngStream::kTask);
  std::vector<float> logits(static_cast<size_t>(v));
  for (float& logit : logits) logit = static_cast<float>(scale * rng.normal());
  return logits;
}

bool same_bits(const LogitStats& a, const LogitStats& b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

const int64_t kSizes[] = {1, 2, 15, 16, 17, 63, 64, 65, 1000, 1024, 1025, 5000, 49152, 151937};
const float kTemperatures[] = {1.0f, 0.7f, 1.3f};

TEST(LogitStats, MatchesTheHandComputedDistribution) {
  // z = (ln 3, 0): p = (3/4, 1/4), H = ln 4 - 3/4 ln 3; relative to the max the sum is 1 + 1/3.
  const float z[2] = {1.09861229f, 0.0f};
  const LogitStats stats = logit_stats(z, 2, 1.0f);
  EXPECT_FLOAT_EQ(stats.max, 1.09861229f);
  EXPECT_FLOAT_EQ(stats.sum, 4.0f / 3.0f);
  EXPECT_FLOAT_EQ(token_logprob(stats, z[0], 1.0f), std::log(0.75f));
  EXPECT_FLOAT_EQ(token_logprob(stats, z[1], 1.0f), std::log(0.25f));
  EXPECT_FLOAT_EQ(entropy(stats), 0.562335145f);
  // At T = 1/2 the odds are 9 : 1.
  EXPECT_FLOAT_EQ(token_logprob(logit_stats(z, 2, 0.5f), z[1], 0.5f), std::log(0.1f));
}

TEST(LogitStats, AgreesWithTheDoubleReference) {
  for (const int64_t v : kSizes) {
    for (const float temperature : kTemperatures) {
      SCOPED_TRACE(::testing::Message() << "V " << v << ", T " << temperature);
      const std::vector<float> z = random_logits(v, 40 + v);
      const LogitStats stats = logit_stats(z.data(), v, temperature);
      const LogitStatsRef expected = logit_stats_ref(z.data(), v, temperature);
      for (const int64_t token : {int64_t{0}, v / 2, v - 1}) {
        EXPECT_NEAR(token_logprob(stats, z[token], temperature),
                    token_logprob_ref(expected, z[token], temperature), testing::kLogprob);
      }
      EXPECT_NEAR(entropy(stats), entropy_ref(expected), testing::kLogprob);
    }
  }
}

TEST(LogitStats, BitsAreTheSameForBothInstructionSets) {
  if (!has_avx512()) GTEST_SKIP() << "this processor has no AVX-512";
  for (const int64_t v : kSizes) {
    for (const float temperature : kTemperatures) {
      std::vector<float> z = random_logits(v, 60 + v, 8), dz = z;
      if (v > 20) z[3] = dz[3] = -kInfinity;
      set_isa(Isa::kAvx2);
      const LogitStats narrow = logit_stats(z.data(), v, temperature);
      logprob_backward({.logits_V = z.data(),
                        .v = v,
                        .padded_v = v,
                        .stats = narrow,
                        .temperature = temperature,
                        .token = static_cast<int32_t>(v / 3),
                        .dlogprob = 0.3f,
                        .dentropy = -0.2f});
      set_isa(Isa::kAvx512);
      const LogitStats wide = logit_stats(dz.data(), v, temperature);
      logprob_backward({.logits_V = dz.data(),
                        .v = v,
                        .padded_v = v,
                        .stats = wide,
                        .temperature = temperature,
                        .token = static_cast<int32_t>(v / 3),
                        .dlogprob = 0.3f,
                        .dentropy = -0.2f});
      EXPECT_TRUE(same_bits(narrow, wide)) << "V " << v;
      EXPECT_EQ(std::memcmp(z.data(), dz.data(), z.size() * sizeof(float)), 0) << "V " << v;
    }
  }
}

TEST(LogitStats, LogitsOfMinusInfinityWeighNothing) {
  std::vector<float> z = random_logits(500, 3);
  const LogitStats without = logit_stats(z.data(), 500, 1.0f);
  z.resize(505, -kInfinity);
  EXPECT_TRUE(same_bits(logit_stats(z.data(), 505, 1.0f), without));
  EXPECT_EQ(token_logprob(without, -kInfinity, 1.0f), -kInfinity);
  const float lone[3] = {-kInfinity, 5.0f, -kInfinity};
  EXPECT_EQ(token_logprob(logit_stats(lone, 3, 1.0f), 5.0f, 1.0f), 0);
  EXPECT_EQ(entropy(logit_stats(lone, 3, 1.0f)), 0);
}

// A NaN logit is outside the contract, but must never give a log-prob or a gradient that looks
// like one. It once weighed nothing, like -inf.
TEST(LogitStats, NanGivesNan) {
  for (const Isa set : {Isa::kAvx2, Isa::kAvx512}) {
    if (set == Isa::kAvx512 && !has_avx512()) continue;
    set_isa(set);
    for (const size_t place : {0u, 7u, 499u, 1024u, 2999u}) {
      std::vector<float> z = random_logits(3000, 4);
      z[place] = std::nanf("");
      const LogitStats stats = logit_stats(z.data(), 3000, 1.0f);
      EXPECT_TRUE(std::isnan(token_logprob(stats, z[5], 1.0f))) << place;
      EXPECT_TRUE(std::isnan(entropy(stats))) << place;
      logprob_backward({.logits_V = z.data(),
                        .v = 3000,
                        .padded_v = 3000,
                        .stats = logit_stats(random_logits(3000, 4).data(), 3000, 1.0f),
                        .temperature = 1.0f,
                        .token = 5,
                        .dlogprob = 1});
      EXPECT_TRUE(std::isnan(z[place])) << place;
    }
  }
  set_isa(has_avx512() ? Isa::kAvx512 : Isa::kAvx2);
}

// Elements get the same operations wherever the vectors end: a row and the same row with impossible
// tokens behind it agree in all bits.
bool tail_is_computed_like_the_body(
    const std::function<float(const float* z, int64_t v)>& sum_of_row) {
  for (int64_t v = 1; v < 48; ++v) {
    std::vector<float> z = random_logits(v, 80 + v);
    const float sum = sum_of_row(z.data(), v);
    z.resize(48, -kInfinity);
    if (sum != sum_of_row(z.data(), 48)) return false;
  }
  return true;
}

TEST(LogitStats, TailIsComputedLikeTheBody) {
  EXPECT_TRUE(tail_is_computed_like_the_body(
      [](const float* z, int64_t v) { return logit_stats(z, v, 1.0f).sum; }));
  // A kernel that hands the tail to the C library must not pass.
  EXPECT_FALSE(tail_is_computed_like_the_body([](const float* z, int64_t v) {
    const int64_t body = v / 16 * 16;
    const float max = logit_stats(z, v, 1.0f).max;
    float sum =
        body > 0 ? logit_stats(z, body, 1.0f).sum * std::exp(logit_stats(z, body, 1.0f).max - max)
                 : 0.0f;
    for (int64_t i = body; i < v; ++i) sum += std::exp(z[i] - max);
    return sum;
  }));
}

TEST(LogprobBackward, AgreesWithTheDoubleReferenceAndClearsThePadding) {
  for (const int64_t v : {1, 5, 16, 33, 1000, 49152}) {
    for (const float temperature : kTemperatures) {
      SCOPED_TRACE(::testing::Message() << "V " << v << ", T " << temperature);
      const int64_t padded_v = v + 7;
      std::vector<float> z = random_logits(padded_v, 90 + v);
      if (v > 4) z[1] = -kInfinity;
      LogprobBackwardParams params{.logits_V = z.data(),
                                   .v = v,
                                   .padded_v = padded_v,
                                   .stats = logit_stats(z.data(), v, temperature),
                                   .temperature = temperature,
                                   .token = static_cast<int32_t>(v - 1),
                                   .dlogprob = -1.7f,
                                   .dentropy = 0.4f};
      std::vector<double> expected(static_cast<size_t>(padded_v));
      logprob_backward_ref(params, expected.data());
      logprob_backward(params);
      for (int64_t i = 0; i < padded_v; ++i) {
        ASSERT_NEAR(z[i], expected[i], testing::kLogprobGradient) << i;
      }
      EXPECT_EQ(z[v], 0);
      EXPECT_EQ(z[padded_v - 1], 0);
    }
  }
}

TEST(LogprobBackward, IsTheDerivativeOfLogprobAndEntropy) {
  const int64_t v = 6;
  const std::vector<float> z = {0.3f, -1.0f, 2.0f, 0.0f, 1.1f, -0.4f};
  const float temperature = 0.8f, dlogprob = 0.9f, dentropy = -0.6f;
  const auto loss = [&](std::vector<float> at) {
    const LogitStatsRef stats = logit_stats_ref(at.data(), v, temperature);
    return dlogprob * token_logprob_ref(stats, at[4], temperature) + dentropy * entropy_ref(stats);
  };
  std::vector<float> dz = z;
  logprob_backward({.logits_V = dz.data(),
                    .v = v,
                    .padded_v = v,
                    .stats = logit_stats(z.data(), v, temperature),
                    .temperature = temperature,
                    .token = 4,
                    .dlogprob = dlogprob,
                    .dentropy = dentropy});
  for (int64_t i = 0; i < v; ++i) {
    std::vector<float> up = z, down = z;
    up[i] += 0.01f;
    down[i] -= 0.01f;
    EXPECT_NEAR(dz[i], (loss(up) - loss(down)) / (double{up[i]} - down[i]),
                testing::kLogprobDifference)
        << i;
  }
}

TEST(LogprobTolerances, RejectWrongKernels) {
  const std::vector<float> z = random_logits(49152, 5);
  const LogitStatsRef all = logit_stats_ref(z.data(), 49152, 1.0);
  // A sum that loses a hundred thousandth, as fp16 or a lost tail would; a temperature off by 1e-5.
  EXPECT_GT(std::abs(all.log_sum - std::log(all.sum * 0.99999)), testing::kLogprob);
  const LogitStatsRef warmer = logit_stats_ref(z.data(), 49152, 1.00001);
  EXPECT_GT(std::abs(token_logprob_ref(all, z[0], 1.0) - token_logprob_ref(warmer, z[0], 1.00001)),
            testing::kLogprob);
  std::vector<double> at_one(16), scaled(16);
  std::vector<float> row = random_logits(16, 6);
  LogprobBackwardParams params{
      .logits_V = row.data(), .v = 16, .padded_v = 16, .stats = {}, .token = 2, .dlogprob = 1};
  logprob_backward_ref(params, at_one.data());
  params.dlogprob = 1.00001f;
  logprob_backward_ref(params, scaled.data());
  EXPECT_GT(std::abs(at_one[2] - scaled[2]), testing::kLogprobGradient);
}

}  // namespace
}  // namespace gradus::kernels
