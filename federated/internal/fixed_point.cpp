// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/fixed_point.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace gradus::federated::internal {
namespace {

constexpr int kExponent = 40;
// 1.5 * 2^52: adding it leaves the rounded integer of |x| < 2^51 in the low bits of the mantissa.
constexpr double kMagic = 6755399441055744.0;

}  // namespace

int fixed_point_exponent(double largest, int64_t count) {
  if (largest == 0) return kExponent;
  int size = 0;
  std::frexp(largest, &size);  // largest <= 2^size
  const int terms = std::bit_width(static_cast<uint64_t>(count));
  return std::min({kExponent, 50 - size, 62 - terms - size});
}

void add_fixed_point(double w, std::span<const float> values, int exponent,
                     std::span<int64_t> sums) {
  const double scaled = std::ldexp(w, exponent);
  const auto magic = std::bit_cast<int64_t>(kMagic);
  const float* v = values.data();
  int64_t* sum = sums.data();
  const size_t count = values.size();
  for (size_t j = 0; j < count; ++j) {
    sum[j] += std::bit_cast<int64_t>(scaled * static_cast<double>(v[j]) + kMagic) - magic;
  }
}

void from_fixed_point(std::span<const int64_t> sums, int exponent, std::span<double> values) {
  const double step = std::ldexp(1.0, -exponent);
  for (size_t j = 0; j < sums.size(); ++j) values[j] = static_cast<double>(sums[j]) * step;
}

}  // namespace gradus::federated::internal
