// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/rng.h"
#include "kernels/lm_head.h"
#include "tests/kernels/head_case.h"

namespace gradus::kernels {
namespace {

using gradus::testing::DeviceArray;
using gradus::testing::HeadCase;
using gradus::testing::HeadResult;
using gradus::testing::must;

// Errors are compared with that of the same gradient whose dz alone is rounded to bf16, once:
// the best that products of bf16 can do. Modes that round once more may be off by this much more.
constexpr double kBackwardSlack = 1.5;
constexpr double kTrainSlack = 1.5;         // of dh
constexpr double kTrainWeightsSlack = 2.0;  // of dw, where h is rounded again: sqrt(2) expected

float from_bf16(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }
float rounded_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u);
}

struct Shape {
  int64_t v, d, b;
  float temperature = 1;
  float logit_scale = 3;
  std::string describe() const {
    return fmt::format("V {}, D {}, B {}, T {}, logits of deviation {}", v, d, b, temperature,
                       logit_scale);
  }
};

// The error of rounding once as it is on average. A case with few rows has a lucky one.
constexpr double kAverageRounding = 1.6e-3;
constexpr double kFewRowsSlack = 2.5;  // of numbers that are off by up to 2^-8

// Deliberately wrong forms of the gradient.
enum class Formula {
  kRight,
  kRounded,        // dz to bf16
  kWrongSign,      // of the token's own 1
  kNoEntropy,      // its gradient left out
  kNoEntropyMean,  // p log p instead of p (log p + H)
  kNoTemperature,  // not divided by T
};

struct Gradients {
  std::vector<double> dh, dw;  // [B, D], [V, D]
};

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double off = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    off += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(off / size);  // NaN if there is one
}

class GradientCase {
 public:
  GradientCase(const Cuda& cuda, const Shape& shape)
      : cuda_(cuda), shape_(shape), head_(cuda, shape.v, shape.d, shape.b, shape.logit_scale, 7) {
    const auto b = static_cast<size_t>(shape.b);
    for (size_t i = 0; i < b; ++i) {
      const uint64_t r = hash64({i, 99});
      tokens_.push_back(static_cast<int32_t>(r % static_cast<uint64_t>(shape.v)));
      dlogprob_.push_back(i % 7 == 3 ? 0 : static_cast<float>(r >> 40 & 1023) * 0.003f - 1.4f);
      dentropy_.push_back(i % 5 == 1 ? 0 : static_cast<float>(r >> 50) * 0.0001f - 0.7f);
    }
    // The first and the last id, and ids at the edges of blocks, are some row's token.
    const int64_t edges[] = {0, shape.v - 1, 127, 128, 8, 64, 72};
    for (size_t i = 0; i < std::min<size_t>(b, 7); ++i) {
      tokens_[i] = static_cast<int32_t>(std::min(edges[(i + 1) % 7], shape.v - 1));
    }
    scores_ = head_.score(std::vector<float>(b, shape.temperature), tokens_);
  }

  // In double from the bf16 operands; rows with a gradient are those of `rows`, if given.
  Gradients exact(Formula formula, bool entropy, const std::vector<int32_t>* rows = nullptr) {
    const auto& [v, d, b, temperature, scale] = shape_;
    if (w_.empty()) {
      for (const uint16_t x : head_.w().download()) w_.push_back(from_bf16(x));
      for (const uint16_t x : head_.h().download()) h_.push_back(from_bf16(x));
    }
    Gradients g{std::vector<double>(h_.size()), std::vector<double>(w_.size())};
    std::vector<double> x(static_cast<size_t>(v));
    for (int64_t row = 0; row < b; ++row) {
      if (rows != nullptr && std::find(rows->begin(), rows->end(), row) == rows->end()) continue;
      const auto i = static_cast<size_t>(row);
      const double* h = h_.data() + row * d;
      double max = -INFINITY, sum = 0, weighted = 0;
      for (int64_t j = 0; j < v; ++j) {
        const double* w = w_.data() + j * d;
        double z = 0;
        for (int64_t k = 0; k < d; ++k) z += w[k] * h[k];
        x[static_cast<size_t>(j)] = z / temperature;
        max = std::max(max, x[static_cast<size_t>(j)]);
      }
      for (const double xj : x) {
        sum += std::exp(xj - max);
        weighted += (xj - max) * std::exp(xj - max);
      }
      const double lse = max + std::log(sum), mean = std::log(sum) - weighted / sum;
      const double gl = dlogprob_[i];
      const double gh = entropy && formula != Formula::kNoEntropy ? dentropy_[i] : 0;
      for (int64_t j = 0; j < v; ++j) {
        const double log_p = x[static_cast<size_t>(j)] - lse, p = std::exp(log_p);
        double dz = -p * (gl + gh * (log_p + (formula == Formula::kNoEntropyMean ? 0 : mean)));
        if (j == tokens_[i]) dz += formula == Formula::kWrongSign ? -gl : gl;
        if (formula != Formula::kNoTemperature) dz /= temperature;
        if (formula == Formula::kRounded) dz = rounded_to_bf16(static_cast<float>(dz));
        if (dz == 0) continue;
        const double* w = w_.data() + j * d;
        double *dh = g.dh.data() + row * d, *dw = g.dw.data() + j * d;
        for (int64_t k = 0; k < d; ++k) {
          dh[k] += dz * w[k];
          dw[k] += dz * h[k];
        }
      }
    }
    return g;
  }

  struct Outputs {
    std::vector<float> dh, dw, logprob, lse, entropy;
  };

  Outputs backward(bool entropy, const std::vector<int32_t>* rows = nullptr) {
    const DeviceArray<float> lse(cuda_, scores_.lse), h(cuda_, scores_.entropy),
        gl(cuda_, dlogprob_), gh(cuda_, dentropy_);
    const DeviceArray<int32_t> token(cuda_, tokens_);
    const DeviceArray<int32_t> listed(cuda_, rows == nullptr ? std::vector<int32_t>(1) : *rows);
    DeviceArray<float> dh(cuda_, static_cast<size_t>(shape_.b * shape_.d)), dw = initial_weights();
    dh.fill(0xFF);
    const int64_t r = rows == nullptr ? 0 : static_cast<int64_t>(rows->size());
    DeviceArray<uint8_t> workspace(
        cuda_, lm_head_backward_workspace_bytes(cuda_, rows == nullptr ? shape_.b : r, shape_.v,
                                                shape_.d, rows != nullptr));
    workspace.fill(0xFF);
    must(lm_head_backward(cuda_, {.w_VD = head_.w().data(),
                                  .h_BD = head_.h().data(),
                                  .token_B = token.data(),
                                  .lse_B = lse.data(),
                                  .entropy_B = entropy ? h.data() : nullptr,
                                  .dlogprob_B = gl.data(),
                                  .dentropy_B = entropy ? gh.data() : nullptr,
                                  .temperature = shape_.temperature,
                                  .b = shape_.b,
                                  .v = shape_.v,
                                  .d = shape_.d,
                                  .rows_R = rows == nullptr ? nullptr : listed.data(),
                                  .r = r,
                                  .dh_BD = dh.data(),
                                  .dw_VD = dw.data(),
                                  .workspace = workspace.data(),
                                  .workspace_bytes = workspace.count()}));
    must(synchronize(cuda_));
    return {dh.download(), dw.download(), {}, {}, {}};
  }

  Outputs train() {
    const auto b = static_cast<size_t>(shape_.b);
    const DeviceArray<float> gl(cuda_, dlogprob_);
    const DeviceArray<int32_t> token(cuda_, tokens_);
    DeviceArray<float> dh(cuda_, static_cast<size_t>(shape_.b * shape_.d)),
        dw = initial_weights(), logprob(cuda_, b), lse(cuda_, b), entropy(cuda_, b);
    for (auto* array : {&dh, &logprob, &lse, &entropy}) array->fill(0xFF);
    DeviceArray<uint8_t> workspace(
        cuda_, lm_head_train_workspace_bytes(cuda_, shape_.b, shape_.v, shape_.d));
    workspace.fill(0xFF);  // what another operator may have left
    must(lm_head_train(cuda_, {.w_VD = head_.w().data(),
                               .h_BD = head_.h().data(),
                               .token_B = token.data(),
                               .dlogprob_B = gl.data(),
                               .temperature = shape_.temperature,
                               .b = shape_.b,
                               .v = shape_.v,
                               .d = shape_.d,
                               .logprob_B = logprob.data(),
                               .lse_B = lse.data(),
                               .entropy_B = entropy.data(),
                               .dh_BD = dh.data(),
                               .dw_VD = dw.data(),
                               .workspace = workspace.data(),
                               .workspace_bytes = workspace.count()}));
    must(synchronize(cuda_));
    return {dh.download(), dw.download(), logprob.download(), lse.download(), entropy.download()};
  }

  // What was added to dw, and dh, as doubles.
  Gradients added(const Outputs& out) const {
    Gradients g;
    g.dh.assign(out.dh.begin(), out.dh.end());
    for (size_t i = 0; i < out.dw.size(); ++i) g.dw.push_back(double{out.dw[i]} - initial(i));
    return g;
  }

  const HeadResult& scores() const { return scores_; }
  HeadCase& head() { return head_; }
  void rescore() {
    scores_ = head_.score(std::vector<float>(tokens_.size(), shape_.temperature), tokens_);
  }

 private:
  // What dw holds before: exact in fp32 next to any gradient of these tests, up to 2^-20.
  static float initial(size_t i) { return static_cast<float>(i % 5) * 0x1p-10f; }
  DeviceArray<float> initial_weights() const {
    std::vector<float> values(static_cast<size_t>(shape_.v * shape_.d));
    for (size_t i = 0; i < values.size(); ++i) values[i] = initial(i);
    return {cuda_, values};
  }

  const Cuda& cuda_;
  Shape shape_;
  HeadCase head_;
  std::vector<int32_t> tokens_;
  std::vector<float> dlogprob_, dentropy_;
  HeadResult scores_;
  std::vector<double> w_, h_;
};

// Vocabularies and widths off the tiles, one row, rows in several waves, chunks of the vocabulary,
// other temperatures, logits so large that a probability is 0 or 1.
const Shape kShapes[] = {{1000, 64, 1},    {127, 72, 63},        {128, 64, 256},
                         {4097, 136, 200}, {300, 256, 65, 0.5f}, {17000, 8, 2100},
                         {301, 24, 4100},  {5000, 64, 70, 1.7f}, {700, 128, 40, 1, 40},
                         {2, 8, 9},        {600, 1032, 150},     {3000, 72, 33, 0.05f}};

void expect_near(const Gradients& got, const Gradients& exact, const Gradients& rounded,
                 double slack, double weights_slack, const std::string& where,
                 bool rounds_otherwise = false, bool few_rows = false) {
  const double dh = distance(got.dh, exact.dh), dw = distance(got.dw, exact.dw);
  double best_dh = distance(rounded.dh, exact.dh), best_dw = distance(rounded.dw, exact.dw);
  if (rounds_otherwise) {
    best_dh = std::max(best_dh, kAverageRounding);
    best_dw = std::max(best_dw, kAverageRounding);
  }
  if (few_rows) slack = weights_slack = kFewRowsSlack;
  std::printf("  %s: dh off by %.2e (rounded dz: %.2e), dw off by %.2e (%.2e)\n", where.c_str(), dh,
              best_dh, dw, best_dw);
  // Sums in fp32 are off by some 1e-6 of their terms.
  EXPECT_LE(dh, slack * best_dh + 2e-5) << where;
  EXPECT_LE(dw, weights_slack * best_dw + 2e-5) << where;
}

TEST(LmHeadBackwardSmall, IsTheGradientInDoubleUpToOneRoundingOfDz) {
  GRADUS_NEEDS_GPU(cuda);
  for (const Shape& shape : kShapes) {
    GradientCase c(*cuda, shape);
    for (const bool entropy : {true, false}) {
      if (!entropy && shape.b * shape.v > 3'000'000) continue;
      const Gradients got = c.added(c.backward(entropy));
      expect_near(got, c.exact(Formula::kRight, entropy), c.exact(Formula::kRounded, entropy),
                  kBackwardSlack, kBackwardSlack,
                  shape.describe() + (entropy ? ", entropy" : ", log-prob alone"));
    }
  }
}

TEST(LmHeadBackwardSmall, WrongFormulasAreFarOff) {
  GRADUS_NEEDS_GPU(cuda);
  for (const Shape& shape : {Shape{1000, 64, 30, 0.7f}, {4097, 72, 63, 1.3f}}) {
    GradientCase c(*cuda, shape);
    const Gradients got = c.added(c.backward(true));
    const Gradients exact = c.exact(Formula::kRight, true);
    const Gradients rounded = c.exact(Formula::kRounded, true);
    for (const Formula wrong : {Formula::kWrongSign, Formula::kNoEntropy, Formula::kNoEntropyMean,
                                Formula::kNoTemperature}) {
      const Gradients other = c.exact(wrong, true);
      const std::string where =
          fmt::format("{}, formula {}", shape.describe(), static_cast<int>(wrong));
      const double dh = distance(got.dh, other.dh), dw = distance(got.dw, other.dw);
      std::printf("  %s: dh off by %.2e, dw by %.2e\n", where.c_str(), dh, dw);
      EXPECT_GT(dh, 3 * (kBackwardSlack * distance(rounded.dh, exact.dh) + 2e-5)) << where;
      EXPECT_GT(dw, 3 * (kBackwardSlack * distance(rounded.dw, exact.dw) + 2e-5)) << where;
    }
  }
}

TEST(LmHeadBackwardSmall, UsesTheScorersLogitsBitForBit) {
  GRADUS_NEEDS_GPU(cuda);
  // With one token, x - lse is 0 and the gradient exactly 0, if both have the same bits.
  for (const float temperature : {1.0f, 0.7f}) {
    GradientCase c(*cuda, {.v = 1, .d = 4096, .b = 300, .temperature = temperature});
    for (const float x : c.backward(true).dh) ASSERT_EQ(x, 0) << temperature;
  }
}

TEST(LmHeadBackwardSmall, RowsThatAreNotListedAreLeftOut) {
  GRADUS_NEEDS_GPU(cuda);
  for (const Shape& shape : {Shape{1000, 72, 63}, {301, 24, 5000}}) {
    GradientCase c(*cuda, shape);
    std::vector<int32_t> rows;
    for (int32_t i = 0; i < shape.b; ++i) {
      if (i % 11 != 4 || i < 30) rows.push_back(i);
    }
    std::swap(rows.front(), rows.back());
    const GradientCase::Outputs out = c.backward(true, &rows);
    expect_near(c.added(out), c.exact(Formula::kRight, true, &rows),
                c.exact(Formula::kRounded, true, &rows), kBackwardSlack, kBackwardSlack,
                fmt::format("{}, {} listed", shape.describe(), rows.size()));
    for (int64_t i = 0; i < shape.b * shape.d; ++i) {
      if (i / shape.d % 11 == 4 && i / shape.d >= 30) {
        ASSERT_EQ(out.dh[static_cast<size_t>(i)], 0) << "row " << i / shape.d;
      }
    }
    const std::vector<int32_t> none;
    const Gradients nothing = c.added(c.backward(true, &none));
    for (const double x : nothing.dh) ASSERT_EQ(x, 0);
    for (const double x : nothing.dw) ASSERT_EQ(x, 0);
  }
}

TEST(LmHeadBackwardSmall, ANanSparesTheOtherRows) {
  GRADUS_NEEDS_GPU(cuda);
  GradientCase c(*cuda, {.v = 1000, .d = 64, .b = 40});
  const std::vector<float> before = c.backward(true).dh;
  std::vector<uint16_t> h = c.head().h().download();
  h[3 * 64 + 5] = 0x7FC0;
  c.head().h().upload(h);
  c.rescore();
  const std::vector<float> after = c.backward(true).dh;
  for (size_t i = 0; i < after.size(); ++i) {
    if (i / 64 == 3) {
      ASSERT_TRUE(std::isnan(after[i])) << i;
    } else {
      ASSERT_EQ(after[i], before[i]) << "row " << i / 64;
    }
  }
}

TEST(LmHeadTrainSmall, IsTheGradientInDoubleAndTheScorersBits) {
  GRADUS_NEEDS_GPU(cuda);
  for (const Shape& shape : kShapes) {
    GradientCase c(*cuda, shape);
    const GradientCase::Outputs out = c.train();
    expect_near(c.added(out), c.exact(Formula::kRight, false), c.exact(Formula::kRounded, false),
                kTrainSlack, kTrainWeightsSlack, shape.describe(), true, shape.b < 16);
    for (size_t i = 0; i < out.lse.size(); ++i) {
      ASSERT_TRUE(testing::same_bits(out.logprob[i], c.scores().logprob[i])) << i;
      ASSERT_TRUE(testing::same_bits(out.lse[i], c.scores().lse[i])) << i;
      ASSERT_TRUE(testing::same_bits(out.entropy[i], c.scores().entropy[i])) << i;
    }
  }
}

TEST(LmHeadTrainSmall, TokensFarBelowTheOthersAreTakenAgain) {
  GRADUS_NEEDS_GPU(cuda);
  // Log-probabilities of tokens down to some -300: exp(x - x_token) would be infinite.
  const Shape shape{.v = 700, .d = 128, .b = 40, .logit_scale = 100};
  GradientCase c(*cuda, shape);
  const float lowest = *std::min_element(c.scores().logprob.begin(), c.scores().logprob.end());
  ASSERT_LT(lowest, -150);
  expect_near(c.added(c.train()), c.exact(Formula::kRight, false),
              c.exact(Formula::kRounded, false), kTrainSlack, kTrainWeightsSlack,
              fmt::format("log-probs down to {}", lowest), true);
}

TEST(LmHeadGradientOnGpu, RunsGiveTheSameBitsAgain) {
  GRADUS_NEEDS_GPU(cuda);
  GradientCase c(*cuda, {.v = 50257, .d = 576, .b = 3000});
  std::vector<int32_t> rows(1700);
  std::iota(rows.begin(), rows.end(), 100);
  const auto same = [](const GradientCase::Outputs& a, const GradientCase::Outputs& b) {
    return std::memcmp(a.dh.data(), b.dh.data(), a.dh.size() * 4) == 0 &&
           std::memcmp(a.dw.data(), b.dw.data(), a.dw.size() * 4) == 0;
  };
  const GradientCase::Outputs whole = c.backward(true), some = c.backward(true, &rows),
                              once = c.train();
  for (int round = 0; round < 3; ++round) {
    EXPECT_TRUE(same(c.backward(true), whole)) << round;
    EXPECT_TRUE(same(c.backward(true, &rows), some)) << round;
    EXPECT_TRUE(same(c.train(), once)) << round;
  }
  // The two ways to the same gradient.
  GradientCase::Outputs plain = c.backward(false);
  const Gradients a = c.added(plain), b = c.added(once);
  const double dh = distance(b.dh, a.dh), dw = distance(b.dw, a.dw);
  std::printf("  train against backward: dh %.2e, dw %.2e apart\n", dh, dw);
  EXPECT_LT(dh, 4e-3);
  EXPECT_LT(dw, 5e-3);
}

TEST(LmHeadGradientOnGpu, WorkspacesStayBelow300Megabytes) {
  GRADUS_NEEDS_GPU(cuda);
  for (const int64_t v : {49152, 128256, 151936, 262144}) {
    for (const int64_t b : {1, 1000, 4096, 16384}) {
      const std::string where = fmt::format("V {}, B {}", v, b);
      EXPECT_LT(lm_head_backward_workspace_bytes(*cuda, b, v, 4096, true), 300'000'000) << where;
      EXPECT_LT(lm_head_train_workspace_bytes(*cuda, b, v, 4096), 300'000'000) << where;
    }
  }
}

}  // namespace
}  // namespace gradus::kernels
