// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

// What benchmarks of whole programs share: a clock, and how numbers are told.
namespace gradus::cli {

using BenchClock = std::chrono::steady_clock;

inline double seconds_since(BenchClock::time_point start) {
  return std::chrono::duration<double>(BenchClock::now() - start).count();
}
// To three places.
inline double rounded(double x) { return std::round(x * 1000) / 1000; }
// The upper one of two; of at least one number.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace gradus::cli
