// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/kernel_settings.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

using testing::AlignedFloats;
using testing::normals;
using testing::same_bits;

// exp, 1 + exp, the quotient, the product.
constexpr double kForwardRoundings = testing::kExpRoundings + 3;

double sigmoid(double g) { return 1 / (1 + std::exp(-g)); }

// silu(gates) * ups of one row.
AlignedFloats swiglu_row(const AlignedFloats& gates, const AlignedFloats& ups) {
  AlignedFloats gate_up = gates;
  gate_up.insert(gate_up.end(), ups.begin(), ups.end());
  AlignedFloats y(gates.size());
  const int64_t i = static_cast<int64_t>(gates.size());
  swiglu({.gate_up = gate_up.data(),
          .gate_up_stride = 2 * i,
          .up_offset = i,
          .y_MI = y.data(),
          .y_stride = i,
          .m = 1,
          .i = i});
  return y;
}

// silu(0) = 0, silu(ln 3) = ln 3 * 3/4, silu(-ln 3) = -ln 3 / 4.
TEST(Swiglu, ComputesTheHandWorkedRow) {
  const AlignedFloats y = swiglu_row({0, 1.09861229f, -1.09861229f}, {5, 2, 4});
  EXPECT_EQ(y[0], 0);
  EXPECT_FLOAT_EQ(y[1], 1.64791844f);
  EXPECT_FLOAT_EQ(y[2], -1.09861229f);
}

TEST(Swiglu, AgreesWithDoubleOverTheWholeRangeOfExp) {
  testing::for_each_setting([] {
    AlignedFloats gates, ups;
    for (double g = -87; g <= 88; g += 0.0137) {
      gates.push_back(static_cast<float>(g));
      ups.push_back(static_cast<float>(1 + 0.3 * std::sin(g)));
    }
    const AlignedFloats y = swiglu_row(gates, ups);
    for (size_t i = 0; i < y.size(); ++i) {
      const double expected = gates[i] * sigmoid(gates[i]) * ups[i];
      ASSERT_NEAR(y[i], expected, testing::rounding_bound(kForwardRoundings, std::abs(expected)))
          << "gate " << gates[i];
    }
  });
}

// Wrong kernels: exp cut after fewer terms (off by 1e-6), tanh's argument halved wrongly (gelu's
// sigmoid(1.702 g)).
TEST(Swiglu, BoundRejectsWrongFormulas) {
  const double g = 1.3, right = g * sigmoid(g);
  const double bound = testing::rounding_bound(kForwardRoundings, right);
  EXPECT_GT(std::abs(g / (1 + std::exp(-g) * (1 + 3e-6)) - right), bound);
  EXPECT_GT(std::abs(g * sigmoid(1.702 * g) - right), bound);
}

TEST(Swiglu, FarGatesGoToTheirLimitsAndNanGoesThrough) {
  testing::for_each_setting([] {
    const AlignedFloats y =
        swiglu_row({-100, -1e30f, 100, 1e30f, testing::kInfinity, testing::kNan, 1},
                   {1, 1, 1, 1, 1, 1, testing::kNan});
    EXPECT_NEAR(y[0], 0, 1e-35);
    EXPECT_NEAR(y[1], 0, 1e-7);  // exp stops at e^88.3, so -1e30 / 2e38 is left
    EXPECT_EQ(y[2], 100);
    EXPECT_EQ(y[3], 1e30f);
    EXPECT_EQ(y[4], testing::kInfinity);
    EXPECT_TRUE(std::isnan(y[5]));
    EXPECT_TRUE(std::isnan(y[6]));
  });
}

TEST(Swiglu, RowsDoNotDependOnTheOtherRowsOfTheCall) {
  for (const int64_t i : {1, 15, 16, 31, 576}) {
    EXPECT_EQ(testing::broken_row_contract(
                  [&](const float* in, int64_t m, float* out) {
                    swiglu({.gate_up = in,
                            .gate_up_stride = 2 * i,
                            .up_offset = i,
                            .y_MI = out,
                            .y_stride = i,
                            .m = m,
                            .i = i});
                  },
                  2 * i, i),
              "")
        << "I " << i;
  }
  // A kernel that goes over all elements in vectors of 16 and hands the last ones to the C library
  // must not pass: a lone row of 15 would be all tail.
  EXPECT_NE(testing::broken_row_contract(
                [](const float* in, int64_t m, float* out) {
                  swiglu({.gate_up = in,
                          .gate_up_stride = 30,
                          .up_offset = 15,
                          .y_MI = out,
                          .y_stride = 15,
                          .m = m,
                          .i = 15});
                  for (int64_t i = m * 15 / 16 * 16; i < m * 15; ++i) {
                    const float* row = in + i / 15 * 30;
                    const float g = row[i % 15];
                    out[i] = g / (1.0f + std::exp(-g)) * row[15 + i % 15];
                  }
                },
                30, 15),
            "");
}

TEST(Swiglu, StridesLeaveWhatLiesBetweenAndSizeZeroIsNothing) {
  const int64_t m = 4, i = 18, stride = 45, up_offset = 22, y_stride = 20;
  const AlignedFloats gate_up = normals(m * stride, 3);
  AlignedFloats y(static_cast<size_t>(m * y_stride), 77.0f);
  SwigluParams params{.gate_up = gate_up.data(),
                      .gate_up_stride = stride,
                      .up_offset = up_offset,
                      .y_MI = y.data(),
                      .y_stride = y_stride,
                      .m = m,
                      .i = i};
  for (int64_t row = 0; row < m; ++row) {
    const auto at = gate_up.begin() + row * stride;
    const AlignedFloats expected = swiglu_row({at, at + i}, {at + up_offset, at + up_offset + i});
    if (row == 0) swiglu(params);
    EXPECT_TRUE(same_bits(expected, {y.data() + row * y_stride, static_cast<size_t>(i)}));
    EXPECT_EQ(y[row * y_stride + i], 77.0f);
    EXPECT_EQ(y[row * y_stride + i + 1], 77.0f);
  }
  const AlignedFloats before = y;
  params.m = 0;
  swiglu(params);
  params.m = m;
  params.i = 0;
  swiglu(params);
  EXPECT_TRUE(same_bits(before, y));
}

// The gradients of one row, gates first.
AlignedFloats backward_row(const AlignedFloats& gates, const AlignedFloats& ups,
                           const AlignedFloats& dy) {
  AlignedFloats gate_up = gates;
  gate_up.insert(gate_up.end(), ups.begin(), ups.end());
  const int64_t i = static_cast<int64_t>(gates.size());
  swiglu_backward({.gate_up = gate_up.data(),
                   .gate_up_stride = 2 * i,
                   .up_offset = i,
                   .dy_MI = dy.data(),
                   .dy_stride = i,
                   .m = 1,
                   .i = i});
  return gate_up;
}

// At g = 0: s = 1/2, so dgate = dy up / 2 and dup = 0. At g = ln 3: s = 3/4, slope 3/4 (1 + ln 3 /
// 4) = 0.95598981.
TEST(SwigluBackward, ComputesTheHandWorkedRow) {
  const AlignedFloats d = backward_row({0, 1.09861229f}, {6, 2}, {2, 10});
  EXPECT_EQ(d[0], 6);
  EXPECT_FLOAT_EQ(d[1], 19.1197962f);
  EXPECT_EQ(d[2], 0);
  EXPECT_FLOAT_EQ(d[3], 8.23959217f);
}

TEST(SwigluBackward, AgreesWithDoubleWithinItsRoundings) {
  testing::for_each_setting([] {
    for (const int64_t count : {1, 16, 17, 1001}) {
      const AlignedFloats gates = normals(count, 4, 6), ups = normals(count, 5),
                          dy = normals(count, 6);
      const AlignedFloats d = backward_row(gates, ups, dy);
      for (int64_t i = 0; i < count; ++i) {
        const double g = gates[i], s = sigmoid(g), du = double{dy[i]} * ups[i];
        ASSERT_NEAR(d[i], du * s * (1 + g * (1 - s)),
                    testing::rounding_bound(testing::kExpRoundings + 8,
                                            std::abs(du) * s * (1 + std::abs(g))))
            << "gate " << g;
        const double dup = dy[i] * g * s;
        ASSERT_NEAR(d[count + i], dup,
                    testing::rounding_bound(testing::kExpRoundings + 4, std::abs(dup)))
            << "gate " << g;
      }
    }
  });
}

TEST(SwigluBackward, IsTheDerivativeOfTheForward) {
  const int64_t count = 21;
  const AlignedFloats gates = normals(count, 7, 2), ups = normals(count, 8), dy = normals(count, 9);
  const AlignedFloats d = backward_row(gates, ups, dy);
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto loss = [&](double g, double up) { return dy[i] * g * sigmoid(g) * up; };
    const double g = gates[i], up = ups[i], step = 1e-4;
    const double dgate = (loss(g + step, up) - loss(g - step, up)) / (2 * step);
    EXPECT_NEAR(d[i], dgate, testing::kRowGradient) << i;
    EXPECT_NEAR(d[count + i], (loss(g, up + step) - loss(g, up - step)) / (2 * step),
                testing::kRowGradient)
        << i;
    // The slope of a sigmoid alone, a common slip, must fail.
    largest = std::max(largest, std::abs(dy[i] * up * sigmoid(g) - dgate));
  }
  EXPECT_GT(largest, testing::kRowGradient);
}

TEST(SwigluBackward, RowsDoNotDependOnTheOtherRowsOfTheCall) {
  for (const int64_t i : {1, 31, 100}) {
    // A row of input: gates, ups, dy.
    EXPECT_EQ(testing::broken_row_contract(
                  [&](const float* in, int64_t m, float* out) {
                    for (int64_t row = 0; row < m; ++row) {
                      std::copy(in + row * 3 * i, in + row * 3 * i + 2 * i, out + row * 2 * i);
                    }
                    swiglu_backward({.gate_up = out,
                                     .gate_up_stride = 2 * i,
                                     .up_offset = i,
                                     .dy_MI = in + 2 * i,
                                     .dy_stride = 3 * i,
                                     .m = m,
                                     .i = i});
                  },
                  3 * i, 2 * i),
              "")
        << "I " << i;
  }
}

TEST(SwigluBackward, NanGoesThrough) {
  const AlignedFloats d =
      backward_row({testing::kNan, 1, 1, 1}, {1, testing::kNan, 1, 1}, {1, 1, testing::kNan, 1});
  const bool expected[8] = {true, true, true, false, true, false, true, false};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(std::isnan(d[i]), expected[i]) << i;
}

// y(0) = 0, y(1) = 0.8413447461 (the normal distribution at 1), y(-1) = y(1) - 1.
TEST(Gelu, ComputesTheHandWorkedRow) {
  AlignedFloats x = {0, 1, -1, 40, -40};
  gelu({.x_MI = x.data(), .x_stride = 5, .y_MI = x.data(), .y_stride = 5, .m = 1, .i = 5});
  EXPECT_EQ(x[0], 0);
  EXPECT_NEAR(x[1], 0.8413447461, testing::kErf);
  EXPECT_NEAR(x[2], -0.1586552539, testing::kErf);
  EXPECT_EQ(x[3], 40);
  EXPECT_NEAR(x[4], 0, 40 * testing::kErf);
}

TEST(Gelu, AgreesWithDoubleAndNotWithTheTanhForm) {
  testing::for_each_setting([] {
    AlignedFloats x;
    for (double v = -9; v < 9; v += 0.0017) x.push_back(static_cast<float>(v));
    AlignedFloats y(x.size()), slopes(x.size(), 1.0f);
    const int64_t count = static_cast<int64_t>(x.size());
    gelu({.x_MI = x.data(),
          .x_stride = count,
          .y_MI = y.data(),
          .y_stride = count,
          .m = 1,
          .i = count});
    gelu_backward({.x_MI = x.data(),
                   .x_stride = count,
                   .dy_MI = slopes.data(),
                   .dy_stride = count,
                   .m = 1,
                   .i = count});
    double worst_of_tanh = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = x[i], exact = 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
      ASSERT_NEAR(y[i], exact, testing::kErf * (0.1 + std::abs(v))) << "x " << v;
      const double slope = 0.5 * (1 + std::erf(v / std::sqrt(2.0))) +
                           v * std::exp(-v * v / 2) / std::sqrt(2 * 3.14159265358979);
      ASSERT_NEAR(slopes[i], slope, 2 * testing::kErf) << "x " << v;
      const double tanh_form = 0.5 * v * (1 + std::tanh(0.7978845608 * (v + 0.044715 * v * v * v)));
      worst_of_tanh = std::max(worst_of_tanh, std::abs(tanh_form - y[i]));
    }
    EXPECT_GT(worst_of_tanh, 100 * testing::kErf);
  });
}

TEST(Gelu, RowsDoNotDependOnTheOtherRowsOfTheCall) {
  EXPECT_EQ(testing::broken_row_contract(
                [](const float* in, int64_t m, float* out) {
                  gelu({.x_MI = in, .x_stride = 37, .y_MI = out, .y_stride = 37, .m = m, .i = 37});
                },
                37, 37),
            "");
  EXPECT_EQ(testing::broken_row_contract(
                [](const float* in, int64_t m, float* out) {
                  std::fill_n(out, m * 37, 0.7f);
                  gelu_backward(
                      {.x_MI = in, .x_stride = 37, .dy_MI = out, .dy_stride = 37, .m = m, .i = 37});
                },
                37, 37),
            "");
}

}  // namespace
}  // namespace gradus::kernels
