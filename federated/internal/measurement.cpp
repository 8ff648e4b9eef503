// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/measurement.h"

#include <algorithm>
#include <cmath>

namespace gradus::federated::internal {

void Measurement::add(std::span<const float> values) {
  double squares[kLanes];
  float largest[kLanes];
  std::copy_n(squares_, kLanes, squares);
  std::copy_n(largest_, kLanes, largest);
  const float* v = values.data();
  const size_t count = values.size();
  const auto take = [&](size_t lane, float x) {
    squares[lane] += static_cast<double>(x) * static_cast<double>(x);
    const float size = std::fabs(x);
    largest[lane] = size > largest[lane] ? size : largest[lane];
  };
  size_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) take(lane, v[j + lane]);
  }
  for (size_t lane = 0; j + lane < count; ++lane) take(lane, v[j + lane]);
  std::copy_n(squares, kLanes, squares_);
  std::copy_n(largest, kLanes, largest_);
}

double Measurement::squared_norm() const {
  double sum = 0;
  for (const double lane : squares_) sum += lane;
  return sum;
}

double Measurement::max_abs() const {
  return static_cast<double>(*std::max_element(largest_, largest_ + kLanes));
}

}  // namespace gradus::federated::internal
