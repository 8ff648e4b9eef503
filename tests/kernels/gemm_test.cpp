// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "common/rng.h"
#include "kernels/internal/gemm_ref.h"
#include "kernels/isa.h"
#include "tests/support/aligned.h"

namespace gradus::kernels {
namespace {

using Floats = gradus::testing::AlignedFloats;

Floats normals(int64_t count, uint64_t seed) {
  RngSequence rng(seed, RngStream::kTask);
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.normal());
  return values;
}

bool same_bits(const Floats& a, const Floats& b) {
  if (a.size() != b.size()) return false;
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<Isa> isas() {
  return has_avx512() ? std::vector<Isa>{Isa::kAvx2, Isa::kAvx512} : std::vector<Isa>{Isa::kAvx2};
}

// Runs `check` for each instruction set and for 1, 2 and 5 threads, and restores the defaults.
void for_each_setting(const std::function<void()>& check) {
  const Isa default_isa = isa();
  const int default_threads = num_threads();
  for (const Isa set : isas()) {
    for (const int threads : {1, 2, 5}) {
      SCOPED_TRACE(::testing::Message()
                   << (set == Isa::kAvx2 ? "AVX2, " : "AVX-512, ") << threads << " threads");
      set_isa(set);
      set_num_threads(threads);
      check();
    }
  }
  set_isa(default_isa);
  set_num_threads(default_threads);
}

struct Shape {
  int64_t m, n, k;
};
std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << "M " << shape.m << ", N " << shape.n << ", K " << shape.k;
}

// 0, 1, odd, just off the panel and tile sizes, several row blocks, several depth blocks.
const Shape kShapes[] = {
    {0, 5, 3},     {1, 1, 1},      {3, 0, 4},      {2, 3, 0},      {1, 16, 7},
    {1, 200, 65},  {2, 33, 64},    {3, 17, 9},     {4, 64, 64},    {5, 100, 31},
    {6, 48, 17},   {7, 31, 33},    {9, 96, 40},    {13, 129, 50},  {14, 80, 16},
    {15, 16, 128}, {29, 65, 127},  {64, 192, 96},  {100, 47, 200}, {130, 1100, 70},
    {700, 24, 40}, {1100, 40, 30}, {90, 30, 2000}, {20, 50, 5000}, {1, 20, 5000}};

struct Linear {
  Shape shape;
  int64_t columns;  // of y and dy
  Floats x, w, w_packed, bias, dy;

  explicit Linear(const Shape& s)
      : shape(s),
        columns(padded(s.n)),
        x(normals(s.m * (s.k + 3), 1)),
        w(normals(s.n * s.k, 2)),
        w_packed(static_cast<size_t>(packed_size(s.n, s.k))),
        bias(normals(columns, 3)),
        dy(normals(s.m * (columns + 5), 4)) {
    pack_weight(w.data(), s.k, s.n, s.k, w_packed.data());
  }
  GemmForwardParams forward(Floats& y, bool with_bias) const {
    return {.x_MK = x.data(),
            .x_stride = shape.k + 3,
            .w_packed = w_packed.data(),
            .bias_N = with_bias ? bias.data() : nullptr,
            .y_MN = y.data(),
            .y_stride = columns + 2,
            .m = shape.m,
            .n = shape.n,
            .k = shape.k};
  }
  GemmBackwardInputParams backward_input(Floats& dx, bool accumulate) const {
    return {.dy_MN = dy.data(),
            .dy_stride = columns + 5,
            .w_packed = w_packed.data(),
            .dx_MK = dx.data(),
            .dx_stride = shape.k + 1,
            .m = shape.m,
            .n = shape.n,
            .k = shape.k,
            .accumulate = accumulate};
  }
  GemmBackwardWeightParams backward_weight(Floats& dw, bool accumulate) const {
    return {.dy_MN = dy.data(),
            .dy_stride = columns + 5,
            .x_MK = x.data(),
            .x_stride = shape.k + 3,
            .dw_packed = dw.data(),
            .m = shape.m,
            .n = shape.n,
            .k = shape.k,
            .accumulate = accumulate};
  }
};

TEST(Gemm, ComputesTheHandWorkedProduct) {
  // x = (1 2; 3 4), w = (5 6; 7 8; 9 10), b = (1 0 -1): y[0] = (5+12+1, 7+16, 9+20-1),
  // y[1] = (15+24+1, 21+32, 27+40-1).
  const Floats x = {1, 2, 3, 4}, w = {5, 6, 7, 8, 9, 10};
  Floats w_packed(packed_size(3, 2)), bias(16), y(32);
  bias[0] = 1;
  bias[2] = -1;
  pack_weight(w.data(), 2, 3, 2, w_packed.data());
  EXPECT_EQ(w_packed[1], 7) << "panel [k][16]: k = 0, n = 1";
  EXPECT_EQ(w_packed[16 + 2], 10) << "k = 1, n = 2";
  gemm_forward({.x_MK = x.data(),
                .x_stride = 2,
                .w_packed = w_packed.data(),
                .bias_N = bias.data(),
                .y_MN = y.data(),
                .y_stride = 16,
                .m = 2,
                .n = 3,
                .k = 2});
  EXPECT_EQ(std::vector<float>(y.begin(), y.begin() + 4), (std::vector<float>{18, 23, 28, 0}));
  EXPECT_EQ(std::vector<float>(y.begin() + 16, y.begin() + 20),
            (std::vector<float>{40, 53, 66, 0}));
}

TEST(Gemm, UnpackUndoesPackAndPaddingIsZero) {
  const Floats w = normals(37 * 11, 7);
  Floats packed(packed_size(37, 9)), back(37 * 9);
  std::fill(packed.begin(), packed.end(), 99.0f);
  pack_weight(w.data(), 11, 37, 9, packed.data());
  unpack_weight(packed.data(), 37, 9, back.data(), 9);
  for (int n = 0; n < 37; ++n) {
    for (int k = 0; k < 9; ++k) ASSERT_EQ(back[n * 9 + k], w[n * 11 + k]) << n << ", " << k;
  }
  for (int k = 0; k < 9; ++k) {
    for (int j = 5; j < 16; ++j) ASSERT_EQ(packed[2 * 9 * 16 + k * 16 + j], 0);
  }
}

TEST(Gemm, ForwardEqualsTheReferenceBitForBit) {
  for_each_setting([] {
    for (const Shape& shape : kShapes) {
      const Linear linear(shape);
      for (const bool with_bias : {false, true}) {
        Floats y(shape.m * (linear.columns + 2), 77.0f), expected = y;
        gemm_forward(linear.forward(y, with_bias));
        gemm_forward_ref(linear.forward(expected, with_bias));
        ASSERT_TRUE(same_bits(y, expected)) << shape;
      }
    }
  });
}

TEST(Gemm, BackwardInputEqualsTheReferenceBitForBit) {
  for_each_setting([] {
    for (const Shape& shape : kShapes) {
      const Linear linear(shape);
      for (const bool accumulate : {false, true}) {
        Floats dx = normals(shape.m * (shape.k + 1), 5), expected = dx;
        gemm_backward_input(linear.backward_input(dx, accumulate));
        gemm_backward_input_ref(linear.backward_input(expected, accumulate));
        ASSERT_TRUE(same_bits(dx, expected)) << shape;
      }
    }
  });
}

TEST(Gemm, BackwardWeightEqualsTheReferenceBitForBit) {
  for_each_setting([] {
    for (const Shape& shape : kShapes) {
      const Linear linear(shape);
      for (const bool accumulate : {false, true}) {
        Floats dw = normals(packed_size(shape.n, shape.k), 6), expected = dw;
        gemm_backward_weight(linear.backward_weight(dw, accumulate));
        gemm_backward_weight_ref(linear.backward_weight(expected, accumulate));
        ASSERT_TRUE(same_bits(dw, expected)) << shape;
      }
    }
  });
}

TEST(Gemm, WeightGradientOfPartsEqualsThatOfTheWhole) {
  const Shape shape{301, 40, 23};
  const Linear linear(shape);
  Floats whole(packed_size(shape.n, shape.k)), parts = whole;
  gemm_backward_weight(linear.backward_weight(whole, false));
  int64_t begin = 0;
  for (const int64_t rows : {1, 64, 100, 136}) {
    GemmBackwardWeightParams params = linear.backward_weight(parts, begin > 0);
    params.dy_MN += begin * params.dy_stride;
    params.x_MK += begin * params.x_stride;
    params.m = rows;
    gemm_backward_weight(params);
    begin += rows;
  }
  ASSERT_EQ(begin, shape.m);
  EXPECT_TRUE(same_bits(whole, parts));
}

using Product = std::function<void(const float* x, int64_t m, float* y)>;

// The row contract: a row's output in calls of 1, 2, 7, 64 and 1000 rows at random places among
// other rows.
bool rows_are_independent(int64_t k, int64_t n, const Product& product) {
  RngSequence rng(11, RngStream::kTask);
  const Floats row = normals(k, 21);
  Floats alone(n);
  product(row.data(), 1, alone.data());
  for (const int64_t m : {1, 2, 7, 64, 1000}) {
    Floats x = normals(m * k, 30 + m), y(m * n);
    const int64_t place = rng.between(0, m - 1);
    std::copy(row.begin(), row.end(), x.begin() + place * k);
    product(x.data(), m, y.data());
    if (std::memcmp(alone.data(), y.data() + place * n, n * sizeof(float)) != 0) return false;
  }
  return true;
}

TEST(Gemm, RowsDoNotDependOnTheOtherRowsOfTheCall) {
  const int64_t k = 576, n = 208;
  const Floats w = normals(n * k, 2);
  Floats w_packed(packed_size(n, k));
  pack_weight(w.data(), k, n, k, w_packed.data());
  for_each_setting([&] {
    EXPECT_TRUE(rows_are_independent(k, n, [&](const float* x, int64_t m, float* y) {
      gemm_forward({.x_MK = x,
                    .x_stride = k,
                    .w_packed = w_packed.data(),
                    .y_MN = y,
                    .y_stride = n,
                    .m = m,
                    .n = n,
                    .k = k});
    }));
    // Backward maps rows of dy [m, n] to rows of dx [m, k] through the same weights.
    EXPECT_TRUE(rows_are_independent(n, k, [&](const float* dy, int64_t m, float* dx) {
      gemm_backward_input({.dy_MN = dy,
                           .dy_stride = n,
                           .w_packed = w_packed.data(),
                           .dx_MK = dx,
                           .dx_stride = k,
                           .m = m,
                           .n = n,
                           .k = k});
    }));
  });
}

// What a library does for few rows: the chain in two halves, added at the end. The tests above must
// notice.
TEST(Gemm, ChainSplitInTwoFailsTheComparisons) {
  const int64_t k = 576, n = 16;
  const Floats w = normals(n * k, 2);
  Floats w_packed(packed_size(n, k));
  pack_weight(w.data(), k, n, k, w_packed.data());
  const Product split = [&](const float* x, int64_t m, float* y) {
    const GemmForwardParams whole{.x_MK = x,
                                  .x_stride = k,
                                  .w_packed = w_packed.data(),
                                  .y_MN = y,
                                  .y_stride = n,
                                  .m = m,
                                  .n = n,
                                  .k = k};
    if (m > 8) {
      gemm_forward(whole);
      return;
    }
    Floats half(m * n);
    GemmForwardParams first = whole, second = whole;
    first.k = second.k = k / 2;
    second.x_MK += k / 2;
    second.w_packed += k / 2 * kPanelWidth;
    second.y_MN = half.data();
    gemm_forward(first);
    gemm_forward(second);
    for (int64_t i = 0; i < m * n; ++i) y[i] += half[i];
  };
  EXPECT_FALSE(rows_are_independent(k, n, split));

  const Floats x = normals(k, 9);
  Floats y(n), expected(n);
  split(x.data(), 1, y.data());
  gemm_forward_ref({.x_MK = x.data(),
                    .x_stride = k,
                    .w_packed = w_packed.data(),
                    .y_MN = expected.data(),
                    .y_stride = n,
                    .m = 1,
                    .n = n,
                    .k = k});
  EXPECT_FALSE(same_bits(y, expected));
}

TEST(Gemm, NanInOneRowStaysInItsRow) {
  const int64_t k = 40, n = 32, m = 30;
  const Floats w = normals(n * k, 2);
  Floats w_packed(packed_size(n, k)), x = normals(m * k, 3), y(m * n), poisoned(m * n);
  pack_weight(w.data(), k, n, k, w_packed.data());
  GemmForwardParams params{.x_MK = x.data(),
                           .x_stride = k,
                           .w_packed = w_packed.data(),
                           .y_MN = y.data(),
                           .y_stride = n,
                           .m = m,
                           .n = n,
                           .k = k};
  gemm_forward(params);
  std::fill_n(x.begin() + 17 * k, k, std::numeric_limits<float>::quiet_NaN());
  params.y_MN = poisoned.data();
  gemm_forward(params);
  for (int64_t i = 0; i < m * n; ++i) {
    if (i / n == 17) {
      EXPECT_TRUE(std::isnan(poisoned[i]));
    } else {
      ASSERT_EQ(poisoned[i], y[i]) << "row " << i / n;
    }
  }
}

TEST(Gemm, OverlappingRowsAreABug) {
  float x[8] = {}, y[32] = {};
  const Floats w(16 * 4);
  try {
    gemm_forward({.x_MK = x,
                  .x_stride = 3,
                  .w_packed = w.data(),
                  .y_MN = y,
                  .y_stride = 16,
                  .m = 2,
                  .n = 1,
                  .k = 4});
    FAIL() << "accepted";
  } catch (const InternalError& error) {
    EXPECT_THAT(std::string(error.what()), ::testing::HasSubstr("gemm_forward: rows overlap"));
  }
}

}  // namespace
}  // namespace gradus::kernels
