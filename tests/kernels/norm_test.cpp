// SPDX-License-Identifier: Apache-2.0
#include "kernels/norm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "common/check.h"
#include "tests/support/kernel_settings.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

using testing::AlignedFloats;
using testing::normals;
using testing::same_bits;

constexpr float kEps = 1e-5f;
constexpr float kUntouched = 12345.0f;

const int64_t kWidths[] = {1, 2, 15, 16, 17, 33, 100, 576, 1000};

// y of m rows, packed; rows of x `stride` apart.
AlignedFloats norm(const AlignedFloats& x, const AlignedFloats& weight, int64_t m,
                   AlignedFloats* rstd = nullptr) {
  const int64_t d = static_cast<int64_t>(weight.size());
  AlignedFloats y(static_cast<size_t>(m * d));
  rms_norm({.x_MD = x.data(),
            .x_stride = d,
            .weight_D = weight.data(),
            .y_MD = y.data(),
            .y_stride = d,
            .rstd_M = rstd != nullptr ? rstd->data() : nullptr,
            .m = m,
            .d = d,
            .eps = kEps});
  return y;
}

double rstd_in_double(const float* x, int64_t d, double eps, double count) {
  double squares = 0;
  for (int64_t i = 0; i < d; ++i) squares += double{x[i]} * x[i];
  return 1 / std::sqrt(squares / count + eps);
}

// Roundings of one output: the sum over lanes goes through a square root, which halves it; then
// mean, + eps, root, quotient and two products.
double norm_roundings(int64_t d) { return (static_cast<double>(d) / 16 + 5) / 2 + 6; }

// x = (3, 4), eps = 0: mean square 12.5, rstd = 1 / 3.5355339 = 0.28284271.
TEST(RmsNorm, ComputesTheHandWorkedRow) {
  const float x[2] = {3, 4}, weight[2] = {1, 10};
  float y[2], rstd;
  rms_norm({.x_MD = x,
            .x_stride = 2,
            .weight_D = weight,
            .y_MD = y,
            .y_stride = 2,
            .rstd_M = &rstd,
            .m = 1,
            .d = 2,
            .eps = 0});
  EXPECT_FLOAT_EQ(rstd, 0.28284271f);
  EXPECT_FLOAT_EQ(y[0], 0.84852814f);
  EXPECT_FLOAT_EQ(y[1], 11.3137085f);
}

TEST(RmsNorm, AgreesWithDoubleWithinItsRoundings) {
  for (const int64_t d : kWidths) {
    const int64_t m = 3;
    const AlignedFloats x = normals(m * d, 1 + static_cast<uint64_t>(d), 2), weight = normals(d, 2);
    AlignedFloats rstd(static_cast<size_t>(m));
    const AlignedFloats y = norm(x, weight, m, &rstd);
    for (int64_t row = 0; row < m; ++row) {
      const double scale = rstd_in_double(x.data() + row * d, d, kEps, static_cast<double>(d));
      EXPECT_NEAR(rstd[row], scale, testing::rounding_bound(norm_roundings(d), scale));
      for (int64_t i = 0; i < d; ++i) {
        const double expected = x[row * d + i] * scale * weight[i];
        ASSERT_NEAR(y[row * d + i], expected,
                    testing::rounding_bound(norm_roundings(d), std::abs(expected)))
            << "D " << d << ", row " << row << ", column " << i;
      }
    }
  }
}

// Wrong kernels: one that divides by D - 1, one that forgets eps.
TEST(RmsNorm, BoundRejectsWrongFormulas) {
  const int64_t d = 1000;
  const AlignedFloats x = normals(d, 3);
  const double right = rstd_in_double(x.data(), d, kEps, static_cast<double>(d));
  const double bound = testing::rounding_bound(norm_roundings(d), right);
  EXPECT_GT(std::abs(rstd_in_double(x.data(), d, kEps, static_cast<double>(d - 1)) - right), bound);
  EXPECT_GT(std::abs(rstd_in_double(x.data(), d, 0, static_cast<double>(d)) - right), bound);
}

TEST(RmsNorm, RowsDoNotDependOnTheOtherRowsOfTheCall) {
  for (const int64_t d : {1, 17, 33, 576}) {
    const AlignedFloats weight = normals(d, 4);
    EXPECT_EQ(testing::broken_row_contract(
                  [&](const float* in, int64_t m, float* out) {
                    rms_norm({.x_MD = in,
                              .x_stride = d,
                              .weight_D = weight.data(),
                              .y_MD = out,
                              .y_stride = d,
                              .m = m,
                              .d = d});
                  },
                  d, d),
              "")
        << "D " << d;
  }
  // A kernel that sums a lone row in another order must not pass.
  const int64_t d = 576;
  EXPECT_NE(testing::broken_row_contract(
                [](const float* in, int64_t m, float* out) {
                  for (int64_t row = 0; row < m; ++row) {
                    const float* x = in + row * d;
                    float sum = 0;
                    for (int64_t i = 0; i < d; ++i) {
                      const float v = x[m == 1 ? i : d - 1 - i];
                      sum += v * v;
                    }
                    for (int64_t i = 0; i < d; ++i) out[row * d + i] = x[i] / std::sqrt(sum / d);
                  }
                },
                d, d),
            "");
}

TEST(RmsNorm, StridesLeaveWhatLiesBetweenAndInPlaceIsTheSame) {
  const int64_t m = 5, d = 19, x_stride = 23, y_stride = 21;
  const AlignedFloats weight = normals(d, 5);
  AlignedFloats x = normals(m * x_stride, 6);
  AlignedFloats packed;
  for (int64_t row = 0; row < m; ++row) {
    packed.insert(packed.end(), x.begin() + row * x_stride, x.begin() + row * x_stride + d);
  }
  const AlignedFloats expected = norm(packed, weight, m);
  AlignedFloats y(static_cast<size_t>(m * y_stride), kUntouched);
  RmsNormParams params{.x_MD = x.data(),
                       .x_stride = x_stride,
                       .weight_D = weight.data(),
                       .y_MD = y.data(),
                       .y_stride = y_stride,
                       .m = m,
                       .d = d,
                       .eps = kEps};
  rms_norm(params);
  const AlignedFloats before = x;
  params.y_MD = x.data();
  params.y_stride = x_stride;
  rms_norm(params);
  for (int64_t row = 0; row < m; ++row) {
    const std::span<const float> want(expected.data() + row * d, static_cast<size_t>(d));
    EXPECT_TRUE(same_bits(want, {y.data() + row * y_stride, want.size()}));
    EXPECT_TRUE(same_bits(want, {x.data() + row * x_stride, want.size()}));
    for (int64_t i = d; i < y_stride; ++i) EXPECT_EQ(y[row * y_stride + i], kUntouched);
    for (int64_t i = d; i < x_stride; ++i) {
      EXPECT_EQ(x[row * x_stride + i], before[row * x_stride + i]);
    }
  }
}

TEST(RmsNorm, NanStaysInItsRowAndFillsIt) {
  const int64_t d = 37;
  const AlignedFloats weight(static_cast<size_t>(d), 1.0f);
  testing::for_each_setting([&] {
    for (const float bad : {testing::kNan, testing::kInfinity}) {
      AlignedFloats x = normals(3 * d, 8);
      const AlignedFloats clean = norm(x, weight, 3);
      x[static_cast<size_t>(d + 20)] = bad;
      const AlignedFloats y = norm(x, weight, 3);
      EXPECT_TRUE(std::isnan(y[static_cast<size_t>(d + 20)]));
      if (std::isnan(bad)) {
        for (int64_t i = d; i < 2 * d; ++i) EXPECT_TRUE(std::isnan(y[static_cast<size_t>(i)]));
      }
      EXPECT_TRUE(
          same_bits({y.data(), static_cast<size_t>(d)}, {clean.data(), static_cast<size_t>(d)}));
      EXPECT_TRUE(same_bits({y.data() + 2 * d, static_cast<size_t>(d)},
                            {clean.data() + 2 * d, static_cast<size_t>(d)}));
    }
  });
}

// Regression: the squares of such rows are no floats, and the row became 0.
TEST(RmsNorm, RowsOfTheLargestNumbersAreNormedLikeOthers) {
  testing::for_each_setting([] {
    for (const int64_t d : {1, 17, 100}) {
      const AlignedFloats weight = normals(d, 3);
      for (const double size : {1e18, 1e20, 1e30, 3e37}) {
        const AlignedFloats x = normals(d, 9, size);
        AlignedFloats rstd(1);
        const AlignedFloats y = norm(x, weight, 1, &rstd);
        const double expected = rstd_in_double(x.data(), d, 0, static_cast<double>(d));
        for (size_t i = 0; i < y.size(); ++i) {
          const double want = x[i] * expected * weight[i];
          ASSERT_NEAR(y[i], want, testing::rounding_bound(norm_roundings(d) + 1, std::abs(want)))
              << d << ", " << size;
        }
        // Below 1.2e-38 floats have fewer digits.
        EXPECT_NEAR(rstd[0], expected, expected * (size > 1e37 ? 1e-5 : 1e-6));
        AlignedFloats dy = normals(d, 10), dx(static_cast<size_t>(d));
        rms_norm_backward({.dy_MD = dy.data(),
                           .dy_stride = d,
                           .x_MD = x.data(),
                           .x_stride = d,
                           .weight_D = weight.data(),
                           .rstd_M = rstd.data(),
                           .dx_MD = dx.data(),
                           .dx_stride = d,
                           .m = 1,
                           .d = d});
        double mean = 0;
        for (size_t i = 0; i < y.size(); ++i) mean += double{dy[i]} * weight[i] * x[i] / d;
        if (size > 1e30) continue;  // the gradient's own sums leave the floats
        for (size_t i = 0; i < y.size(); ++i) {
          const double g = double{dy[i]} * weight[i];
          const double want = expected * (g - x[i] * expected * expected * mean);
          ASSERT_NEAR(dx[i], want, 1e-5 * expected * (1 + std::abs(g))) << d << ", " << size;
        }
      }
    }
  });
}

TEST(RmsNorm, NoRowsDoNothingAndNoColumnsAreABug) {
  const AlignedFloats weight = normals(4, 1);
  EXPECT_TRUE(norm({}, weight, 0).empty());
  EXPECT_THROW(rms_norm({.m = 1, .d = 0}), InternalError);
  EXPECT_THROW(rms_norm_backward({.m = 1, .d = 0}), InternalError);
}

// The backward of m rows with everything that it reads.
struct Backward {
  int64_t m, d;
  AlignedFloats x, dy, weight, rstd, dx, dweight;

  Backward(int64_t rows, int64_t width, uint64_t seed)
      : m(rows),
        d(width),
        x(normals(m * d, seed)),
        dy(normals(m * d, seed + 1)),
        weight(normals(d, seed + 2)),
        rstd(static_cast<size_t>(m)),
        dx(static_cast<size_t>(m * d)),
        dweight(static_cast<size_t>(d)) {
    norm(x, weight, m, &rstd);
  }
  RmsNormBackwardParams params() {
    return {.dy_MD = dy.data(),
            .dy_stride = d,
            .x_MD = x.data(),
            .x_stride = d,
            .weight_D = weight.data(),
            .rstd_M = rstd.data(),
            .dx_MD = dx.data(),
            .dx_stride = d,
            .dweight_D = dweight.data(),
            .m = m,
            .d = d};
  }
};

TEST(RmsNormBackward, AgreesWithDoubleWithinItsRoundings) {
  for (const int64_t d : kWidths) {
    Backward b(4, d, 20 + static_cast<uint64_t>(d));
    rms_norm_backward(b.params());
    std::vector<double> dweight(static_cast<size_t>(d)), dweight_size(static_cast<size_t>(d));
    for (int64_t row = 0; row < b.m; ++row) {
      const double rstd = b.rstd[row];
      double mean = 0, mean_size = 0;
      for (int64_t i = 0; i < d; ++i) {
        const double product = double{b.dy[row * d + i]} * b.weight[i] * b.x[row * d + i];
        mean += product / static_cast<double>(d);
        mean_size += std::abs(product) / static_cast<double>(d);
        dweight[i] += double{b.dy[row * d + i]} * b.x[row * d + i] * rstd;
        dweight_size[i] += std::abs(double{b.dy[row * d + i]} * b.x[row * d + i] * rstd);
      }
      for (int64_t i = 0; i < d; ++i) {
        const double g = double{b.dy[row * d + i]} * b.weight[i], x = b.x[row * d + i];
        const double size = rstd * (std::abs(g) + std::abs(x) * rstd * rstd * mean_size);
        ASSERT_NEAR(b.dx[row * d + i], rstd * (g - x * rstd * rstd * mean),
                    testing::rounding_bound(static_cast<double>(d) / 16 + 12, size))
            << "D " << d << ", row " << row << ", column " << i;
      }
    }
    for (int64_t i = 0; i < d; ++i) {
      ASSERT_NEAR(b.dweight[i], dweight[i],
                  testing::rounding_bound(static_cast<double>(b.m) + 2, dweight_size[i]))
          << "D " << d << ", column " << i;
    }
  }
}

TEST(RmsNormBackward, IsTheDerivativeOfTheForward) {
  const int64_t d = 19;
  Backward b(1, d, 40);
  rms_norm_backward(b.params());
  std::vector<double> x(b.x.begin(), b.x.end()), weight(b.weight.begin(), b.weight.end());
  const auto loss = [&] {
    double squares = 0, sum = 0;
    for (const double v : x) squares += v * v;
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(d) + double{kEps});
    for (size_t i = 0; i < x.size(); ++i) sum += b.dy[i] * x[i] * rstd * weight[i];
    return sum;
  };
  const auto slope = [&](double& value) {
    const double at = value, step = 1e-4;
    value = at + step;
    const double above = loss();
    value = at - step;
    const double below = loss();
    value = at;
    return (above - below) / (2 * step);
  };
  double largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(b.dx[i], slope(x[i]), testing::kRowGradient) << i;
    EXPECT_NEAR(b.dweight[i], slope(weight[i]), testing::kRowGradient) << i;
    // Without the term that keeps the norm, the gradient would be rstd dy w: it must fail.
    largest = std::max(largest, std::abs(b.rstd[0] * b.dy[i] * b.weight[i] - slope(x[i])));
  }
  EXPECT_GT(largest, testing::kRowGradient);
}

TEST(RmsNormBackward, RowsDoNotDependOnTheOtherRowsOfTheCall) {
  const int64_t d = 33;
  const AlignedFloats weight = normals(d, 4);
  // A row of input: dy, then x.
  EXPECT_EQ(testing::broken_row_contract(
                [&](const float* in, int64_t m, float* out) {
                  AlignedFloats y(static_cast<size_t>(m * d)), rstd(static_cast<size_t>(m));
                  rms_norm({.x_MD = in + d,
                            .x_stride = 2 * d,
                            .weight_D = weight.data(),
                            .y_MD = y.data(),
                            .y_stride = d,
                            .rstd_M = rstd.data(),
                            .m = m,
                            .d = d});
                  rms_norm_backward({.dy_MD = in,
                                     .dy_stride = 2 * d,
                                     .x_MD = in + d,
                                     .x_stride = 2 * d,
                                     .weight_D = weight.data(),
                                     .rstd_M = rstd.data(),
                                     .dx_MD = out,
                                     .dx_stride = d,
                                     .m = m,
                                     .d = d});
                },
                2 * d, d),
            "");
}

// Micro-batches: the weight gradient of parts, one after the other, has the bits of the whole, and
// neither threads nor instruction set change one.
TEST(RmsNormBackward, WeightGradientOfPartsEqualsThatOfTheWhole) {
  const int64_t m = 500, d = 100;
  Backward whole(m, d, 50);
  rms_norm_backward(whole.params());
  testing::for_each_setting([&] {
    for (const int64_t part : {1, 7, 64, 499}) {
      Backward b(m, d, 50);
      for (int64_t begin = 0; begin < m; begin += part) {
        RmsNormBackwardParams params = b.params();
        params.m = std::min(part, m - begin);
        params.dy_MD += begin * d;
        params.x_MD += begin * d;
        params.dx_MD += begin * d;
        params.rstd_M += begin;
        rms_norm_backward(params);
      }
      EXPECT_TRUE(same_bits(whole.dweight, b.dweight)) << "parts of " << part;
      EXPECT_TRUE(same_bits(whole.dx, b.dx)) << "parts of " << part;
    }
  });
}

TEST(RmsNormBackward, AccumulatesAndMayOverwriteDy) {
  const int64_t m = 6, d = 21;
  Backward plain(m, d, 60), added(m, d, 60), in_place(m, d, 60);
  rms_norm_backward(plain.params());
  added.dx.assign(added.dx.size(), 0.5f);
  RmsNormBackwardParams params = added.params();
  params.accumulate = true;
  rms_norm_backward(params);
  params = in_place.params();
  params.dx_MD = in_place.dy.data();
  rms_norm_backward(params);
  for (size_t i = 0; i < plain.dx.size(); ++i) EXPECT_EQ(added.dx[i], 0.5f + plain.dx[i]);
  EXPECT_TRUE(same_bits(plain.dx, in_place.dy));
  EXPECT_TRUE(same_bits(plain.dweight, in_place.dweight));
  EXPECT_TRUE(same_bits(plain.dweight, added.dweight));
}

TEST(RmsNormBackward, NanReachesTheRowAndTheWeights) {
  Backward b(3, 20, 70);
  b.dy[25] = testing::kNan;
  rms_norm_backward(b.params());
  for (size_t i = 0; i < b.dx.size(); ++i) EXPECT_EQ(std::isnan(b.dx[i]), i >= 20 && i < 40) << i;
  for (size_t i = 0; i < b.dweight.size(); ++i) EXPECT_EQ(std::isnan(b.dweight[i]), i == 5) << i;
}

TEST(AddInPlace, AddsEveryElementOnceUnderEverySetting) {
  testing::for_each_setting([] {
    for (const int64_t count : {0, 1, 15, 16, 17, 70000}) {
      AlignedFloats dst = normals(count, 1);
      const AlignedFloats src = normals(count, 2);
      AlignedFloats expected = dst;
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += src[i];
      add_in_place(dst.data(), src.data(), count);
      EXPECT_TRUE(same_bits(expected, dst)) << count;
    }
  });
}

TEST(ColumnSums, ContinueAChainOfAdditionsInRowOrder) {
  testing::for_each_setting([] {
    for (const int64_t n : {1, 16, 33, 100}) {
      for (const int64_t m : {0, 1, 700}) {
        const int64_t stride = n + 3;
        const AlignedFloats dy = normals(m * stride, 3);
        AlignedFloats sums = normals(n, 4), expected = sums;
        for (int64_t row = 0; row < m; ++row) {
          for (int64_t i = 0; i < n; ++i) expected[i] += dy[row * stride + i];
        }
        column_sums(dy.data(), stride, m, n, sums.data());
        EXPECT_TRUE(same_bits(expected, sums)) << "M " << m << ", N " << n;
      }
    }
  });
}

// Mean 2, variance (1 + 1 + 4 + 4) / 4 = 2.5.
TEST(LayerNorm, ComputesTheHandWorkedRow) {
  const AlignedFloats x = {1, 3, 0, 4}, weight = {1, 2, 1, 1}, bias = {0, 1, 0, -1};
  AlignedFloats y(4);
  layer_norm({.x_MD = x.data(),
              .x_stride = 4,
              .weight_D = weight.data(),
              .bias_D = bias.data(),
              .y_MD = y.data(),
              .y_stride = 4,
              .m = 1,
              .d = 4});
  const double rstd = 1 / std::sqrt(2.5);
  EXPECT_FLOAT_EQ(y[0], static_cast<float>(-rstd));
  EXPECT_FLOAT_EQ(y[1], static_cast<float>(2 * rstd + 1));
  EXPECT_FLOAT_EQ(y[2], static_cast<float>(-2 * rstd));
  EXPECT_FLOAT_EQ(y[3], static_cast<float>(2 * rstd - 1));
}

TEST(LayerNorm, AgreesWithDoubleForRowsFarFromZero) {
  for (const int64_t d : kWidths) {
    AlignedFloats x = normals(3 * d, static_cast<uint64_t>(d));
    for (float& value : x) value += 50;  // what one pass over squares would lose
    const AlignedFloats weight = normals(d, 2), bias = normals(d, 3);
    AlignedFloats y(static_cast<size_t>(3 * d));
    layer_norm({.x_MD = x.data(),
                .x_stride = d,
                .weight_D = weight.data(),
                .bias_D = bias.data(),
                .y_MD = y.data(),
                .y_stride = d,
                .m = 3,
                .d = d,
                .eps = kEps});
    for (int64_t row = 0; row < 3; ++row) {
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < d; ++i) mean += x[row * d + i] / static_cast<double>(d);
      for (int64_t i = 0; i < d; ++i) {
        variance += std::pow(x[row * d + i] - mean, 2) / static_cast<double>(d);
      }
      const double rstd = 1 / std::sqrt(variance + double{kEps});
      for (int64_t i = 0; i < d; ++i) {
        const double expected = (x[row * d + i] - mean) * rstd * weight[i] + bias[i];
        // The mean is off by a few roundings at 50, seen through rstd.
        ASSERT_NEAR(y[row * d + i], expected,
                    testing::rounding_bound(static_cast<double>(d) / 16 + 8,
                                            (50 * rstd + 4) * std::abs(weight[i]) + 4))
            << "d " << d << ", column " << i;
      }
    }
  }
}

TEST(LayerNorm, RowsDoNotDependOnTheOtherRowsOfTheCall) {
  const AlignedFloats weight = normals(37, 2), bias = normals(37, 3);
  EXPECT_EQ(testing::broken_row_contract(
                [&](const float* in, int64_t m, float* out) {
                  layer_norm({.x_MD = in,
                              .x_stride = 37,
                              .weight_D = weight.data(),
                              .bias_D = bias.data(),
                              .y_MD = out,
                              .y_stride = 37,
                              .m = m,
                              .d = 37});
                },
                37, 37),
            "");
}

// Central differences of sum(dy y) in double.
TEST(LayerNorm, BackwardAgreesWithDifferencesInDouble) {
  for (const int64_t d : {2, 17, 100}) {
    const int64_t m = 3;
    const AlignedFloats x = normals(m * d, 5), dy = normals(m * d, 6), weight = normals(d, 2),
                        bias = normals(d, 3);
    AlignedFloats y(x.size()), mean(m), rstd(m), dx(x.size()), dweight(static_cast<size_t>(d));
    layer_norm({.x_MD = x.data(),
                .x_stride = d,
                .weight_D = weight.data(),
                .bias_D = bias.data(),
                .y_MD = y.data(),
                .y_stride = d,
                .mean_M = mean.data(),
                .rstd_M = rstd.data(),
                .m = m,
                .d = d,
                .eps = kEps});
    layer_norm_backward({.dy_MD = dy.data(),
                         .dy_stride = d,
                         .x_MD = x.data(),
                         .x_stride = d,
                         .weight_D = weight.data(),
                         .mean_M = mean.data(),
                         .rstd_M = rstd.data(),
                         .dx_MD = dx.data(),
                         .dx_stride = d,
                         .dweight_D = dweight.data(),
                         .m = m,
                         .d = d});
    const auto loss = [&](int64_t row, int64_t column, double step, int64_t weight_column) {
      double total = 0;
      for (int64_t r = 0; r < m; ++r) {
        std::vector<double> values(x.begin() + r * d, x.begin() + (r + 1) * d);
        if (r == row) values[column] += step;
        double average = 0, variance = 0;
        for (const double v : values) average += v / static_cast<double>(d);
        for (const double v : values) variance += std::pow(v - average, 2) / static_cast<double>(d);
        for (int64_t i = 0; i < d; ++i) {
          const double w = weight[i] + (i == weight_column ? step : 0);
          total += dy[r * d + i] * (values[i] - average) / std::sqrt(variance + double{kEps}) * w;
        }
      }
      return total;
    };
    constexpr double kStep = 1e-4;
    for (int64_t i = 0; i < m * d; i += 3) {
      const double slope =
          (loss(i / d, i % d, kStep, -1) - loss(i / d, i % d, -kStep, -1)) / (2 * kStep);
      ASSERT_NEAR(dx[i], slope, testing::kRowGradient * (1 + rstd[i / d] * rstd[i / d]))
          << "d " << d << ", element " << i;
    }
    for (int64_t i = 0; i < d; ++i) {
      const double slope = (loss(-1, 0, kStep, i) - loss(-1, 0, -kStep, i)) / (2 * kStep);
      ASSERT_NEAR(dweight[i], slope, testing::kRowGradient) << "d " << d << ", weight " << i;
    }
  }
}

}  // namespace
}  // namespace gradus::kernels
