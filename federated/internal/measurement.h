// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

namespace gradus::federated::internal {

// Squared norm and largest size of values that come in pieces; the same bits for any pieces, of
// which all but the last have a multiple of 16 values.
class Measurement {
 public:
  void add(std::span<const float> values);
  double squared_norm() const;  // not finite if a value was not
  double max_abs() const;       // of those that are no NaN

 private:
  // Lanes of their own, so that the loop vectorises; their order is fixed.
  static constexpr size_t kLanes = 16;
  double squares_[kLanes] = {};
  float largest_[kLanes] = {};
};

}  // namespace gradus::federated::internal
