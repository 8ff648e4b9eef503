// SPDX-License-Identifier: Apache-2.0
#include "kernels/muon.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/internal/muon_ref.h"
#include "tests/support/files.h"
#include "tests/support/kernel_settings.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

using nlohmann::json;
using testing::AlignedFloats;
using testing::normals;
using testing::same_bits;

struct Shape {
  int64_t n, k;
};
// One weight, vectors, square, wide, tall, below and above a panel.
const std::vector<Shape> kShapes = {{1, 1},   {1, 20},  {20, 1},  {15, 17}, {16, 16},
                                    {17, 15}, {24, 40}, {70, 18}, {33, 130}};

// A weight matrix with its momentum, row-major outside and in panels inside.
struct Matrix {
  int64_t n, k;
  AlignedFloats weights, momentum, scratch;

  Matrix(int64_t rows, int64_t columns, const AlignedFloats& row_major)
      : n(rows), k(columns), weights(size()), momentum(size()), scratch(scratch_size()) {
    pack_weight(row_major.data(), k, n, k, weights.data());
  }
  size_t size() const { return static_cast<size_t>(packed_size(n, k)); }
  size_t scratch_size() const { return static_cast<size_t>(muon_scratch_size(n, k)); }

  void step(const AlignedFloats& gradient, MuonParams params = {}) {
    AlignedFloats packed(size());
    pack_weight(gradient.data(), k, n, k, packed.data());
    params.w_packed = weights.data();
    params.g_packed = packed.data();
    params.momentum_packed = momentum.data();
    params.scratch = scratch.data();
    params.n = n;
    params.k = k;
    muon(params);
  }
  AlignedFloats unpacked(const AlignedFloats& panels) const {
    AlignedFloats out(static_cast<size_t>(n * k));
    unpack_weight(panels.data(), n, k, out.data(), k);
    return out;
  }
};

std::vector<double> doubles(const AlignedFloats& values) { return {values.begin(), values.end()}; }

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double value : values) result = std::max(result, std::abs(value));
  return result;
}

// Eigenvalues of the symmetric s [m, m] by Jacobi rotations.
std::vector<double> eigenvalues(std::vector<double> s, size_t m) {
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (size_t p = 0; p < m; ++p) {
      for (size_t q = p + 1; q < m; ++q) {
        const double angle = 0.5 * std::atan2(2 * s[p * m + q], s[q * m + q] - s[p * m + p]);
        const double c = std::cos(angle), t = std::sin(angle);
        for (size_t i = 0; i < m; ++i) {
          const double a = s[i * m + p], b = s[i * m + q];
          s[i * m + p] = c * a - t * b;
          s[i * m + q] = t * a + c * b;
        }
        for (size_t i = 0; i < m; ++i) {
          const double a = s[p * m + i], b = s[q * m + i];
          s[p * m + i] = c * a - t * b;
          s[q * m + i] = t * a + c * b;
        }
      }
    }
  }
  std::vector<double> values;
  for (size_t i = 0; i < m; ++i) values.push_back(s[i * m + i]);
  return values;
}

// Singular values of what one step subtracts from zero weights with rate 1.
std::vector<double> singular_values_of_step(Shape shape, const AlignedFloats& gradient) {
  Matrix matrix(shape.n, shape.k, AlignedFloats(static_cast<size_t>(shape.n * shape.k)));
  matrix.step(gradient, {.learning_rate = 1});
  const AlignedFloats o = matrix.unpacked(matrix.weights);
  const int64_t m = std::min(shape.n, shape.k);
  std::vector<double> gram(static_cast<size_t>(m * m));
  const int64_t row = shape.n <= shape.k ? shape.k : 1, along = shape.n <= shape.k ? 1 : shape.k;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t l = 0; l < std::max(shape.n, shape.k); ++l) {
        gram[static_cast<size_t>(i * m + j)] +=
            double{o[static_cast<size_t>(i * row + l * along)]} *
            o[static_cast<size_t>(j * row + l * along)];
      }
    }
  }
  std::vector<double> values = eigenvalues(std::move(gram), static_cast<size_t>(m));
  for (double& value : values) value = std::sqrt(std::max(0.0, value));
  return values;
}

// One weight: u / |u| = 1, and five times x -> 3.4445 x - 4.7750 x^3 + 2.0315 x^5: 0.701, 1.114,
// 0.723, 1.091, 0.693 (1 + 3.4445 - 4.7750 + 2.0315 = 0.701 and so on). The sign is the gradient's.
TEST(Muon, ComputesTheHandWorkedStepOfOneWeight) {
  double x = 1;
  for (int step = 0; step < 5; ++step)
    x = 3.4445 * x - 4.7750 * x * x * x + 2.0315 * std::pow(x, 5);
  for (const float gradient : {4.0f, -4.0f}) {
    Matrix one(1, 1, {2.0f});
    one.step({gradient},
             {.momentum = 0.5f, .learning_rate = 0.5f, .update_scale = 3, .weight_decay = 0.25f});
    EXPECT_EQ(one.momentum[0], gradient / 2);
    const double expected = 2 - 0.5 * 0.25 * 2 - (gradient > 0 ? 1 : -1) * 0.5 * 3 * x;
    EXPECT_NEAR(one.weights[0], expected, testing::kMuonStep * 1.5);
  }
}

// Four steps with momentum, decay and gradients of growing size, by torch in double.
TEST(Muon, AgreesWithTorchInDouble) {
  const json golden = json::parse(test::read_file("tests/golden/optimizer/muon.json"));
  ASSERT_EQ(golden["cases"].size(), 7u);
  for (const json& entry : golden["cases"]) {
    const int64_t n = entry["rows"], k = entry["columns"];
    SCOPED_TRACE(::testing::Message() << n << " x " << k);
    const auto start = entry["weights"].get<std::vector<float>>();
    const double scale = std::sqrt(std::max(1.0, static_cast<double>(n) / static_cast<double>(k)));
    Matrix matrix(n, k, AlignedFloats(start.begin(), start.end()));
    MuonRef reference{.n = n,
                      .k = k,
                      .weights = {start.begin(), start.end()},
                      .momentum_buffer = std::vector<double>(start.size()),
                      .momentum = golden["momentum"],
                      .learning_rate = golden["learning_rate"],
                      .update_scale = scale,
                      .weight_decay = golden["weight_decay"]};
    for (const json& gradient : entry["gradients"]) {
      const auto values = gradient.get<std::vector<float>>();
      matrix.step(AlignedFloats(values.begin(), values.end()),
                  {.momentum = golden["momentum"].get<float>(),
                   .learning_rate = golden["learning_rate"].get<float>(),
                   .update_scale = static_cast<float>(scale),
                   .weight_decay = golden["weight_decay"].get<float>()});
      reference.step({values.begin(), values.end()});
    }
    EXPECT_LT(entry["torch_optim_difference"].get<double>(), 0.01 * 4 * 0.02 * scale)
        << "torch.optim.Muon does the same in bf16";
    const auto expected = entry["expected"].get<std::vector<double>>();
    const AlignedFloats weights = matrix.unpacked(matrix.weights);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(reference.weights[i], expected[i], testing::kMuonReference) << i;
      // In parts of the four steps, of which each moves a weight by at most 0.02 scale 1.2.
      ASSERT_NEAR(
          weights[i], expected[i],
          testing::kMuonStep * 4 * 0.02 * scale + testing::rounding_bound(8, std::abs(expected[i])))
          << i;
    }
  }
}

TEST(Muon, AgreesWithTheReferenceInDouble) {
  for (const Shape shape : kShapes) {
    SCOPED_TRACE(::testing::Message() << shape.n << " x " << shape.k);
    const AlignedFloats gradient = normals(shape.n * shape.k, 5, 1e-3);
    const size_t count = gradient.size();
    Matrix matrix(shape.n, shape.k, AlignedFloats(count));
    matrix.step(gradient, {.gradient_scale = 0.5f, .learning_rate = 1});
    MuonRef reference{.n = shape.n,
                      .k = shape.k,
                      .weights = std::vector<double>(count),
                      .momentum_buffer = std::vector<double>(count),
                      .learning_rate = 1,
                      .update_scale = 1};
    MuonRef skewed = reference;
    skewed.num_steps = 4;
    reference.step(doubles(gradient));  // the scale of the gradient cancels
    skewed.step(doubles(gradient));
    const AlignedFloats weights = matrix.unpacked(matrix.weights);
    double difference = 0, skewed_difference = 0;
    for (size_t i = 0; i < count; ++i) {
      difference = std::max(difference, std::abs(weights[i] - reference.weights[i]));
      skewed_difference = std::max(skewed_difference, std::abs(weights[i] - skewed.weights[i]));
    }
    EXPECT_LT(difference, testing::kMuonStep * largest(reference.weights));
    EXPECT_GT(skewed_difference, testing::kMuonStep * largest(reference.weights));
  }
}

TEST(Muon, SingularValuesOfAStepAreNearOne) {
  for (const Shape shape : {Shape{16, 16}, Shape{24, 40}, Shape{70, 18}, Shape{1, 20}}) {
    SCOPED_TRACE(::testing::Message() << shape.n << " x " << shape.k);
    // Columns of very different size, so that the singular values of the gradient are, too.
    AlignedFloats gradient = normals(shape.n * shape.k, 6);
    for (size_t i = 0; i < gradient.size(); ++i) {
      gradient[i] *= 1.0f / static_cast<float>(1 + i % static_cast<size_t>(shape.k) % 8);
    }
    for (const double value : singular_values_of_step(shape, gradient)) {
      EXPECT_GT(value, 0.6);
      EXPECT_LT(value, 1.25);
    }
  }
}

TEST(Muon, BitsDoNotDependOnThreadsOrInstructionSet) {
  for (const Shape shape : {Shape{17, 15}, Shape{33, 130}, Shape{300, 200}}) {
    SCOPED_TRACE(::testing::Message() << shape.n << " x " << shape.k);
    const AlignedFloats start = normals(shape.n * shape.k, 7);
    std::vector<AlignedFloats> results;
    testing::for_each_setting([&] {
      Matrix matrix(shape.n, shape.k, start);
      for (uint64_t step = 0; step < 2; ++step) {
        matrix.step(normals(shape.n * shape.k, 8 + step), {.learning_rate = 0.1f});
      }
      results.push_back(matrix.weights);
      results.back().insert(results.back().end(), matrix.momentum.begin(), matrix.momentum.end());
    });
    for (const AlignedFloats& result : results) EXPECT_TRUE(same_bits(result, results[0]));
  }
}

TEST(Muon, ZeroGradientsOnlyDecayAndPaddingStaysZero) {
  const AlignedFloats start = normals(17 * 15, 9);
  Matrix matrix(17, 15, start);
  matrix.step(AlignedFloats(17 * 15), {.learning_rate = 0.5f, .weight_decay = 0.5f});
  const AlignedFloats weights = matrix.unpacked(matrix.weights);
  for (size_t i = 0; i < start.size(); ++i) EXPECT_EQ(weights[i], start[i] - 0.25f * start[i]);
  matrix.step(normals(17 * 15, 10), {.learning_rate = 0.5f});
  for (size_t i = 0; i < matrix.weights.size(); ++i) {
    if (i / 16 >= 15 && i % 16 >= 1) {  // the second panel has one output
      EXPECT_EQ(matrix.weights[i], 0) << i;
      EXPECT_EQ(matrix.momentum[i], 0) << i;
    }
  }
}

TEST(Muon, TheScaleOfTheGradientDoesNotMatter) {
  const AlignedFloats gradient = normals(24 * 40, 11);
  AlignedFloats larger = gradient;
  for (float& value : larger) value *= 1024;
  Matrix a(24, 40, AlignedFloats(24 * 40)), b = a;
  a.step(gradient, {.learning_rate = 1});
  b.step(larger, {.learning_rate = 1});
  EXPECT_TRUE(same_bits(a.weights, b.weights)) << "a power of two changes no bit";
}

}  // namespace
}  // namespace gradus::kernels
