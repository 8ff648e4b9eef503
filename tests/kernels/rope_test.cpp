// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "common/check.h"
#include "tests/support/kernel_settings.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

using testing::AlignedFloats;
using testing::normals;
using testing::same_bits;

// Of one output: sine and cosine rounded to float, two products, one of them fused.
constexpr double kRotationRoundings = 4;

std::vector<double> frequencies(int64_t width, double base = 10000) {
  std::vector<double> values;
  for (int64_t i = 0; i < width / 2; ++i) {
    values.push_back(std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(width)));
  }
  return values;
}

// Rotates rows [T, H, K], packed.
void rotate(const RopeTable& table, AlignedFloats& x, const std::vector<int32_t>& positions,
            int64_t heads, int64_t width, bool inverse = false) {
  rope({.x_THK = x.data(),
        .x_stride = heads * width,
        .positions_T = positions.data(),
        .t = static_cast<int64_t>(positions.size()),
        .num_heads = heads,
        .head_width = width,
        .cosines = table.cosines(),
        .sines = table.sines(),
        .inverse = inverse});
}

// Frequencies pi/2 and pi at position 1: the pair (1, 3) turns by a quarter to (-3, 1), the pair
// (2, 4) by a half to (-2, -4). Pairs are (i, i + K/2), so the row is 1 2 3 4.
TEST(Rope, ComputesTheHandWorkedRow) {
  RopeTable table({std::numbers::pi / 2, std::numbers::pi});
  table.reserve(2);
  AlignedFloats x = {1, 2, 3, 4};
  rotate(table, x, {1}, 1, 4);
  EXPECT_FLOAT_EQ(x[0], -3);
  EXPECT_FLOAT_EQ(x[1], -2);
  EXPECT_FLOAT_EQ(x[2], 1);
  EXPECT_FLOAT_EQ(x[3], -4);
}

TEST(Rope, PositionZeroChangesNothing) {
  RopeTable table(frequencies(10));
  table.reserve(1);
  const AlignedFloats before = normals(20, 1);
  AlignedFloats x = before;
  rotate(table, x, {0}, 2, 10);
  EXPECT_TRUE(same_bits(before, x));
}

TEST(Rope, AgreesWithDoubleAtNearAndFarPositions) {
  for (const int64_t width : {2, 6, 32, 34, 64, 128}) {
    const std::vector<double> rates = frequencies(width);
    RopeTable table(rates);
    const std::vector<int32_t> positions = {0, 1, 2, 63, 64, 4095, 40000};
    table.reserve(40001);
    const int64_t heads = 3, half = width / 2;
    const AlignedFloats before = normals(7 * heads * width, 2);
    AlignedFloats x = before;
    rotate(table, x, positions, heads, width);
    for (size_t t = 0; t < positions.size(); ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const float* in = before.data() + (static_cast<int64_t>(t) * heads + h) * width;
        const float* out = x.data() + (static_cast<int64_t>(t) * heads + h) * width;
        for (int64_t i = 0; i < half; ++i) {
          const double angle = positions[t] * rates[i], c = std::cos(angle), s = std::sin(angle);
          const double size = std::abs(double{in[i]}) + std::abs(double{in[half + i]});
          const double bound = testing::rounding_bound(kRotationRoundings, size);
          ASSERT_NEAR(out[i], in[i] * c - in[half + i] * s, bound)
              << "K " << width << ", position " << positions[t] << ", pair " << i;
          ASSERT_NEAR(out[half + i], in[half + i] * c + in[i] * s, bound)
              << "K " << width << ", position " << positions[t] << ", pair " << i;
        }
      }
    }
  }
}

// Wrong kernels at position 40000: an angle formed in float, a position off by one at the slowest
// frequency of K = 64, and pairs of neighbours instead of halves.
TEST(Rope, BoundRejectsWrongRotations) {
  const double bound = testing::rounding_bound(kRotationRoundings, 2);
  const double rate = frequencies(64)[5];
  const float in_float = 40000.0f * static_cast<float>(rate);
  EXPECT_GT(std::abs(std::cos(double{in_float}) - std::cos(40000 * rate)), bound);
  const double slowest = frequencies(64).back();
  EXPECT_GT(std::abs(std::sin(40001 * slowest) - std::sin(40000 * slowest)), bound);
  RopeTable table(frequencies(4));
  table.reserve(2);
  AlignedFloats x = {1, 0, 0, 0};
  rotate(table, x, {1}, 1, 4);
  EXPECT_GT(std::abs(x[2] - x[1]), bound);
}

TEST(Rope, SineAndCosineAreRightToTheLastBitsOfADouble) {
  RngSequence rng(3, RngStream::kTask);
  for (int trial = 0; trial < 200000; ++trial) {
    // All magnitudes up to 2^24, and points next to multiples of pi/2, where the range reduction
    // loses digits.
    double x = std::pow(2.0, 44 * rng.uniform() - 20);
    if (trial % 4 == 0) x = std::round(x) * (std::numbers::pi / 2);
    double sine, cosine;
    sine_cosine(x, sine, cosine);
    ASSERT_NEAR(sine, std::sin(x), 1e-15) << x;
    ASSERT_NEAR(cosine, std::cos(x), 1e-15) << x;
  }
}

TEST(Rope, TableGrowsWithoutChangingWhatItHad) {
  RopeTable once(frequencies(32)), grown(frequencies(32));
  once.reserve(1000);
  for (const int64_t size : {1, 65, 64, 300, 1000}) grown.reserve(size);
  const size_t count = 1000 * 16;
  EXPECT_TRUE(same_bits({once.cosines(), count}, {grown.cosines(), count}));
  EXPECT_TRUE(same_bits({once.sines(), count}, {grown.sines(), count}));
  EXPECT_THROW(once.reserve((int64_t{1} << 24) + 1), InternalError);
}

TEST(Rope, RowsDoNotDependOnTheOtherRowsOfTheCall) {
  RopeTable table(frequencies(34));
  table.reserve(2000);
  // The first number of a row chooses its position.
  EXPECT_EQ(testing::broken_row_contract(
                [&](const float* in, int64_t m, float* out) {
                  std::vector<int32_t> positions;
                  for (int64_t row = 0; row < m; ++row) {
                    positions.push_back(
                        std::min(1999, static_cast<int32_t>(std::abs(in[row * 69]) * 100)));
                    std::copy(in + row * 69 + 1, in + row * 69 + 69, out + row * 68);
                  }
                  rope({.x_THK = out,
                        .x_stride = 68,
                        .positions_T = positions.data(),
                        .t = m,
                        .num_heads = 2,
                        .head_width = 34,
                        .cosines = table.cosines(),
                        .sines = table.sines()});
                },
                69, 68),
            "");
}

// The rotation is orthogonal, so its transpose, which the backward needs, is its inverse.
TEST(Rope, InverseIsTheBackward) {
  const int64_t width = 34, heads = 2;
  RopeTable table(frequencies(width));
  table.reserve(500);
  const std::vector<int32_t> positions = {3, 17, 499};
  const AlignedFloats x = normals(3 * heads * width, 4), dy = normals(3 * heads * width, 5);
  AlignedFloats y = x, dx = dy;
  rotate(table, y, positions, heads, width);
  rotate(table, dx, positions, heads, width, true);
  // <dy, R x> = <R^T dy, x>.
  double left = 0, right = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    left += double{dy[i]} * y[i];
    right += double{dx[i]} * x[i];
    size += std::abs(double{dy[i]} * y[i]) + std::abs(double{dx[i]} * x[i]);
  }
  EXPECT_NEAR(left, right, testing::rounding_bound(kRotationRoundings, size));
  rotate(table, y, positions, heads, width, true);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(y[i], x[i], testing::rounding_bound(2 * kRotationRoundings + 2, 4)) << i;
  }
}

TEST(Rope, StridesLeaveWhatLiesBetweenAndNanStaysInItsPair) {
  RopeTable table(frequencies(6));
  table.reserve(10);
  const int64_t stride = 15;  // 2 heads of 6 and three columns of someone else
  const std::vector<int32_t> positions = {4, 9};
  AlignedFloats x = normals(2 * stride, 6);
  x[1] = testing::kNan;
  const AlignedFloats before = x;
  rope({.x_THK = x.data(),
        .x_stride = stride,
        .positions_T = positions.data(),
        .t = 2,
        .num_heads = 2,
        .head_width = 6,
        .cosines = table.cosines(),
        .sines = table.sines()});
  for (int64_t row = 0; row < 2; ++row) {
    for (int64_t i = 12; i < stride; ++i) {
      EXPECT_EQ(x[row * stride + i], before[row * stride + i]);
    }
  }
  for (int64_t i = 0; i < 2 * stride; ++i) EXPECT_EQ(std::isnan(x[i]), i == 1 || i == 4) << i;
}

TEST(Rope, NoRowsDoNothingAndAnOddWidthIsABug) {
  RopeTable table(frequencies(4));
  AlignedFloats none;
  rotate(table, none, {}, 2, 4);
  EXPECT_THROW(rope({.t = 0, .num_heads = 1, .head_width = 5}), InternalError);
}

}  // namespace
}  // namespace gradus::kernels
