// SPDX-License-Identifier: Apache-2.0
#include "kernels/optimizer.h"

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

struct State {
  AlignedFloats weights, gradients, m, v;

  explicit State(int64_t count, uint64_t seed = 1)
      : weights(normals(count, seed)),
        gradients(normals(count, seed + 1)),
        m(normals(count, seed + 2, 0.1)),
        v(normals(count, seed + 3, 0.1)) {
    for (float& value : v) value = value * value;
  }
  AdamWParams params() {
    return {.weights = weights.data(),
            .gradients = gradients.data(),
            .m = m.data(),
            .v = v.data(),
            .count = static_cast<int64_t>(weights.size()),
            .gradient_scale = 0.7f,
            .learning_rate = 0.01f,
            .weight_decay = 0.1f,
            .correction1 = 0.271f,
            .correction2 = 0.002997f};
  }
};

// Numbers that double holds exactly where it matters: g = 4, beta1 = beta2 = 1/2, first step. m =
// 2, v = 8, both corrections 1/2, so m^ = 4, v^ = 16; w = 2 - 0.5 * 0.25 * 2 = 1.75, then - 0.5 * 4
// / (4 + 0) = 1.25.
TEST(AdamW, ComputesTheHandWorkedStep) {
  float w = 2, m = 0, v = 0;
  const float g = 4;
  adamw({.weights = &w,
         .gradients = &g,
         .m = &m,
         .v = &v,
         .count = 1,
         .learning_rate = 0.5f,
         .beta1 = 0.5f,
         .beta2 = 0.5f,
         .eps = 0,
         .weight_decay = 0.25f,
         .correction1 = 0.5f,
         .correction2 = 0.5f});
  EXPECT_EQ(m, 2);
  EXPECT_EQ(v, 8);
  EXPECT_EQ(w, 1.25f);
}

TEST(AdamW, ScalesTheGradientFirst) {
  State whole(40), halved(40);
  for (float& g : halved.gradients) g *= 0.5f;
  AdamWParams scaled = whole.params(), plain = halved.params();
  scaled.gradient_scale = 0.5f;
  plain.gradient_scale = 1;
  adamw(scaled);
  adamw(plain);
  EXPECT_TRUE(same_bits(whole.weights, halved.weights));
  EXPECT_TRUE(same_bits(whole.v, halved.v));
}

// Ten steps of the formula in double as torch.optim.AdamW documents it: decay by lr * weight_decay
// first, bias corrections, eps outside the root. `skew` plants a mistake.
enum class Skew { kNone, kEpsInsideRoot, kNoCorrection, kDecayOfTheGradient };

struct DoubleAdamW {
  std::vector<double> w, m, v;

  void step(const AlignedFloats& gradients, int step, double lr, double decay, double eps,
            Skew skew) {
    // The kernel's betas are floats: 0.9f and 0.999f are what it is asked for.
    const double beta1 = double{0.9f}, beta2 = double{0.999f};
    const double correction1 = skew == Skew::kNoCorrection ? 1 : 1 - std::pow(beta1, step);
    const double correction2 = skew == Skew::kNoCorrection ? 1 : 1 - std::pow(beta2, step);
    for (size_t i = 0; i < w.size(); ++i) {
      double g = gradients[i];
      if (skew == Skew::kDecayOfTheGradient) {
        g += decay * w[i];
      } else {
        w[i] -= lr * decay * w[i];
      }
      m[i] = beta1 * m[i] + (1 - beta1) * g;
      v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      const double v_hat = v[i] / correction2;
      const double root =
          skew == Skew::kEpsInsideRoot ? std::sqrt(v_hat + eps) : std::sqrt(v_hat) + eps;
      w[i] -= lr * (m[i] / correction1) / root;
    }
  }
};

// Largest difference to the formula after ten steps of lr 0.01 from weights of about 1.
double largest_difference(Skew skew) {
  const int64_t count = 1000;
  const double lr = 0.01, decay = 0.1, eps = 1e-3;
  State state(count);
  DoubleAdamW expected{{state.weights.begin(), state.weights.end()},
                       std::vector<double>(count),
                       std::vector<double>(count)};
  std::fill(state.m.begin(), state.m.end(), 0.0f);
  std::fill(state.v.begin(), state.v.end(), 0.0f);
  for (int step = 1; step <= 10; ++step) {
    state.gradients = normals(count, 50 + static_cast<uint64_t>(step));
    AdamWParams params = state.params();
    params.gradient_scale = 1;
    params.eps = static_cast<float>(eps);
    params.correction1 = static_cast<float>(1 - std::pow(double{0.9f}, step));
    params.correction2 = static_cast<float>(1 - std::pow(double{0.999f}, step));
    adamw(params);
    expected.step(state.gradients, step, lr, decay, eps, skew);
  }
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::abs(state.weights[i] - expected.w[i]));
  }
  return largest;
}

TEST(AdamW, AgreesWithThePublishedFormulaInDouble) {
  EXPECT_LT(largest_difference(Skew::kNone), testing::kAdamWTenSteps);
  EXPECT_GT(largest_difference(Skew::kEpsInsideRoot), testing::kAdamWTenSteps);
  EXPECT_GT(largest_difference(Skew::kNoCorrection), testing::kAdamWTenSteps);
  EXPECT_GT(largest_difference(Skew::kDecayOfTheGradient), testing::kAdamWTenSteps);
}

// The same operations in the same order, one element at a time: bits, at every length, so neither
// the tail nor threads nor instruction set are special.
TEST(AdamW, HasTheBitsOfAPlainLoopUnderEverySetting) {
  testing::for_each_setting([] {
    for (const int64_t count : {0, 1, 15, 16, 17, 1000, 50001}) {
      State state(count), expected(count);
      const AdamWParams p = state.params();
      adamw(p);
      const float rest1 = 1.0f - p.beta1, rest2 = 1.0f - p.beta2;
      const float decay = p.learning_rate * p.weight_decay, rate = p.learning_rate / p.correction1;
      for (int64_t i = 0; i < count; ++i) {
        const float g = expected.gradients[i] * p.gradient_scale;
        float& m = expected.m[i];
        float& v = expected.v[i];
        float& w = expected.weights[i];
        m = std::fma(p.beta1, m, rest1 * g);
        v = std::fma(p.beta2, v, rest2 * (g * g));
        w = std::fma(-decay, w, w);
        w = w - rate * m / (std::sqrt(v / p.correction2) + p.eps);
      }
      EXPECT_TRUE(same_bits(expected.weights, state.weights)) << count;
      EXPECT_TRUE(same_bits(expected.m, state.m)) << count;
      EXPECT_TRUE(same_bits(expected.v, state.v)) << count;
    }
  });
}

// Zero gradients from a fresh state leave weights alone but for decay: 0 / (0 + eps) is 0, not NaN.
TEST(AdamW, ZeroGradientsOnlyDecay) {
  State state(20);
  std::fill(state.gradients.begin(), state.gradients.end(), 0.0f);
  std::fill(state.m.begin(), state.m.end(), 0.0f);
  std::fill(state.v.begin(), state.v.end(), 0.0f);
  const AlignedFloats before = state.weights;
  AdamWParams params = state.params();
  params.weight_decay = 0;
  adamw(params);
  EXPECT_TRUE(same_bits(before, state.weights));
  params.weight_decay = 0.1f;
  adamw(params);
  for (size_t i = 0; i < before.size(); ++i) EXPECT_FLOAT_EQ(state.weights[i], 0.999f * before[i]);
}

TEST(AdamW, NanStaysInItsElement) {
  State state(33);
  state.gradients[20] = testing::kNan;
  adamw(state.params());
  for (size_t i = 0; i < 33; ++i) EXPECT_EQ(std::isnan(state.weights[i]), i == 20) << i;
}

TEST(SumOfSquares, AgreesWithDoubleAndDoesNotDependOnTheSetting) {
  for (const int64_t count : {0, 1, 15, 17, 4095, 4096, 4097, 100000, 300000}) {
    const AlignedFloats values = normals(count, 9);
    double expected = 0;
    for (const float value : values) expected += double{value} * value;
    const double sum = sum_of_squares(values.data(), count);
    // A block of 4096: 256 additions in each lane and 4 over the lanes; blocks are added in double.
    const double bound = testing::rounding_bound(260, expected);
    EXPECT_NEAR(sum, expected, bound) << count;
    testing::for_each_setting(
        [&] { EXPECT_EQ(sum_of_squares(values.data(), count), sum) << count; });
    // One block forgotten, or a tail of 1 of 4097 counted twice with a large value, must not pass.
    if (count > 4096) {
      EXPECT_GT(expected - sum_of_squares(values.data() + 4096, count - 4096), bound);
    }
  }
}

TEST(SumOfSquares, NanAndInfinityComeThroughFromAnyPlace) {
  testing::for_each_setting([] {
    for (const size_t place : {0u, 15u, 16u, 4095u, 4096u, 9999u}) {
      AlignedFloats values = normals(10000, 10);
      values[place] = testing::kNan;
      EXPECT_TRUE(std::isnan(sum_of_squares(values.data(), 10000))) << place;
      values[place] = -testing::kInfinity;
      EXPECT_EQ(sum_of_squares(values.data(), 10000), INFINITY) << place;
      values[place] = 1e30f;  // its square is no float: the norm must not look finite
      EXPECT_EQ(sum_of_squares(values.data(), 10000), INFINITY) << place;
    }
  });
}

}  // namespace
}  // namespace gradus::kernels
