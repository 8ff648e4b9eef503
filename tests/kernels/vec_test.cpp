// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "tests/kernels/vec_functions.h"
#include "tests/support/kernel_settings.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

using testing::AlignedFloats;
using testing::same_bits;
using Function = void (*)(const float*, int64_t, float*);

AlignedFloats map(Function function, const AlignedFloats& x) {
  AlignedFloats y(x.size());
  function(x.data(), static_cast<int64_t>(x.size()), y.data());
  return y;
}

// Distance of y from the exact value in units of the last place of the exact value's binade.
double ulps(float y, double exact) {
  const double unit = std::ldexp(1.0, std::ilogb(exact) - 23);
  return std::abs(double{y} - exact) / unit;
}

// Floats of [low, high], about `count` of them: equally spaced, so most magnitudes near 0 come from
// the powers of two at the end.
AlignedFloats between(double low, double high, int count) {
  AlignedFloats x;
  for (int i = 0; i <= count; ++i) x.push_back(static_cast<float>(low + (high - low) * i / count));
  for (int e = -149; e < 7; ++e) {
    for (const double sign : {-1.0, 1.0}) {
      const double value = sign * std::ldexp(1.37, e);
      if (value >= low && value <= high) x.push_back(static_cast<float>(value));
    }
  }
  return x;
}

// Every 997th positive normal float.
AlignedFloats positive_floats() {
  AlignedFloats x;
  for (uint32_t bits = 0x00800000u; bits < 0x7F800000u; bits += 997) {
    x.push_back(std::bit_cast<float>(bits));
  }
  for (int i = -2000; i <= 2000; ++i) {  // around 1, where the result is small
    x.push_back(std::bit_cast<float>(0x3F800000u + static_cast<uint32_t>(i)));
  }
  return x;
}

double worst_ulps(const AlignedFloats& x, const AlignedFloats& y, double (*exact)(double)) {
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = exact(x[i]);
    if (value == 0) {
      EXPECT_EQ(y[i], 0) << x[i];
    } else {
      worst = std::max(worst, ulps(y[i], value));
    }
  }
  return worst;
}

double exact_exp(double x) { return std::exp(x); }
double exact_log(double x) { return std::log(x); }

TEST(VecFunctions, ExpIsWithinTwoUlpOverItsRange) {
  const AlignedFloats x = between(-87.3, 88.3, 3000000);
  const double worst = worst_ulps(x, map(avx2::exp_of_all, x), exact_exp);
  RecordProperty("worst_ulps", std::to_string(worst));
  EXPECT_LT(worst, testing::kVecUlps);
}

TEST(VecFunctions, LogIsWithinTwoUlpOverAllNormalFloats) {
  const AlignedFloats x = positive_floats();
  const double worst = worst_ulps(x, map(avx2::log_of_all, x), exact_log);
  RecordProperty("worst_ulps", std::to_string(worst));
  EXPECT_LT(worst, testing::kVecUlps);
}

// Wrong functions: exp without the low half of ln 2, log with its last coefficient dropped.
TEST(VecFunctions, TwoUlpRejectWrongFunctions) {
  const float x = 60.3f;
  const double n = std::nearbyint(x * 1.44269504), r = x - n * 0.693359375;
  EXPECT_GT(ulps(static_cast<float>(std::exp(r) * std::exp2(n)), std::exp(double{x})),
            testing::kVecUlps);
  const double f = 0.4;
  const float wrong = static_cast<float>(std::log1p(f) - 7.0376836292e-2 * std::pow(f, 11));
  EXPECT_GT(ulps(wrong, std::log1p(f)), testing::kVecUlps);
}

TEST(VecFunctions, ExpAtTheEndsOfItsRange) {
  std::vector<Function> functions = {avx2::exp_of_all, avx2::exp_one_by_one};
  if (has_avx512()) {
    functions.push_back(avx512::exp_of_all);
    functions.push_back(avx512::exp_one_by_one);
  }
  for (const Function function : functions) {
    const AlignedFloats y = map(function, {0, -0.0f, -testing::kInfinity, -1000, -87.4f, 89, 1e30f,
                                           testing::kInfinity, testing::kNan, -testing::kNan});
    EXPECT_EQ(y[0], 1);
    EXPECT_EQ(y[1], 1);
    for (const int i : {2, 3, 4}) EXPECT_EQ(y[i], 0) << i;
    const AlignedFloats last = map(function, {88.3f});
    for (const int i : {5, 6, 7}) EXPECT_EQ(y[i], last[0]) << i;
    EXPECT_TRUE(std::isnan(y[8]));
    EXPECT_TRUE(std::isnan(y[9]));
  }
}

// The bits of NaN and infinity read as a float near 2^128, whose log is an innocent 88.7.
TEST(VecFunctions, LogOfNanAndInfinityIsNotANumberLikeOthers) {
  std::vector<Function> functions = {avx2::log_of_all};
  if (has_avx512()) functions.push_back(avx512::log_of_all);
  for (const Function function : functions) {
    const AlignedFloats y =
        map(function, {testing::kNan, -testing::kNan, testing::kInfinity, 3.40282347e+38f, 1});
    EXPECT_TRUE(std::isnan(y[0]));
    EXPECT_TRUE(std::isnan(y[1]));
    EXPECT_EQ(y[2], testing::kInfinity);
    EXPECT_FLOAT_EQ(y[3], 88.7228394f);
    EXPECT_EQ(y[4], 0);
  }
}

TEST(VecFunctions, BitsAreTheSameInBodyTailAloneAndForBothInstructionSets) {
  const AlignedFloats x = between(-90, 90, 100003);
  const AlignedFloats y = map(avx2::exp_of_all, x);
  EXPECT_TRUE(same_bits(y, map(avx2::exp_one_by_one, x)));
  for (const size_t count : {1u, 15u, 17u}) {
    const AlignedFloats part =
        map(avx2::exp_of_all, {x.begin(), x.begin() + static_cast<int64_t>(count)});
    EXPECT_TRUE(same_bits({y.data(), count}, part)) << count;
  }
  if (!has_avx512()) GTEST_SKIP() << "this processor has no AVX-512";
  EXPECT_TRUE(same_bits(y, map(avx512::exp_of_all, x)));
  EXPECT_TRUE(same_bits(y, map(avx512::exp_one_by_one, x)));
  const AlignedFloats positive = positive_floats();
  EXPECT_TRUE(same_bits(map(avx2::log_of_all, positive), map(avx512::log_of_all, positive)));
}

// The C library's exp has other bits, so the comparisons above can fail.
TEST(VecFunctions, TheCLibraryHasOtherBits) {
  const AlignedFloats x = between(-10, 10, 10000);
  AlignedFloats libm;
  for (const float value : x) libm.push_back(std::exp(value));
  EXPECT_FALSE(same_bits(map(avx2::exp_of_all, x), libm));
}

}  // namespace
}  // namespace gradus::kernels
