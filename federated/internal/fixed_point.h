// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

namespace gradus::federated::internal {

// Order-free sums: each term w_k v_k[j] is rounded to a multiple of 2^-exponent and added as a
// 64-bit integer, which is associative.

// The exponent for `count` terms of at most `largest` in size: 40 (steps of 9e-13) if all partial
// sums fit, else the largest that lets them.
int fixed_point_exponent(double largest, int64_t count);

// sums[j] += round(w v[j] 2^exponent), |w v[j]| <= the `largest` that the exponent is for.
void add_fixed_point(double w, std::span<const float> values, int exponent,
                     std::span<int64_t> sums);

// values[j] = sums[j] 2^-exponent.
void from_fixed_point(std::span<const int64_t> sums, int exponent, std::span<double> values);

}  // namespace gradus::federated::internal
