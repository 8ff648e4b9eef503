// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

// Every tolerance of the test suite, each with where it comes from.
namespace gradus::testing {

// fp32 against double over a reduction of `length` terms of size about `scale`: rounding errors of a chain
// add up like a random walk, eps * sqrt(length), with a factor 4 for the tail of many elements.
inline double reduction_tolerance(int64_t length, double scale = 1.0) {
  return 4.0 * std::numeric_limits<float>::epsilon() * std::sqrt(static_cast<double>(length)) * scale + 1e-7;
}

// Attention of unit normal q, k, v: scores carry an error of eps * sqrt(K) relative to 1, seen through the
// softmax; measured largest 1.2e-6 at width 128, length 1100.
inline double attention_tolerance(int64_t length) { return reduction_tolerance(length, 4.0) + 2e-6; }

// Central differences with step 0.02 of an fp32 forward: truncation of order step^2 and rounding of order
// eps * |loss| / step.
inline constexpr double kFiniteDifference = 4e-3;

}  // namespace gradus::testing
