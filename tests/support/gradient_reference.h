// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/training_pass.h"
#include "tests/support/tolerances.h"

namespace gradus::testing {

// Of every weight's gradient g: sum g_i, sum g_i cos(i) and the norm, as `reference` has them by
// the weight's name, {sum, wave, norm} in float64.
inline void expect_gradients(const model::Transformer& transformer,
                             const model::Gradients& gradients, const nlohmann::json& reference,
                             const std::string& name) {
  for (const model::WeightSpec& spec : model::weight_specs(transformer.config())) {
    int64_t size = 1;
    for (const int64_t extent : spec.shape) size *= extent;
    std::vector<float> grad(static_cast<size_t>(size));
    ASSERT_TRUE(
        read_parameter(transformer.layout(), gradients.buffer.data(), spec, grad.data()).ok());
    double sum = 0, wave = 0, squares = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double g = grad[static_cast<size_t>(i)];
      sum += g;
      wave += g * std::cos(static_cast<double>(i));
      squares += g * g;
    }
    const nlohmann::json& expected = reference[spec.hf_name];
    ASSERT_EQ(expected.size(), 3u) << spec.hf_name;
    const double norm = expected[2].get<double>();
    // Sums over a weight's elements see their errors like the norm does.
    const double tolerance = kGradientOfNorm * norm;
    EXPECT_NEAR(std::sqrt(squares), norm, tolerance) << name << " " << spec.hf_name;
    EXPECT_NEAR(wave, expected[1].get<double>(), tolerance) << name << " " << spec.hf_name;
    EXPECT_NEAR(sum, expected[0].get<double>(), tolerance) << name << " " << spec.hf_name;
  }
}

}  // namespace gradus::testing
