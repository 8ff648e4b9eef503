// SPDX-License-Identifier: Apache-2.0
#include "privacy/internal/fft.h"

#include <bit>
#include <cmath>
#include <numbers>
#include <vector>

#include "common/check.h"

namespace gradus::privacy::internal {

void fft(std::span<std::complex<double>> values, bool is_inverse) {
  const size_t n = values.size();
  GRADUS_CHECK(std::has_single_bit(n), "fft needs a size that is a power of two");
  for (size_t i = 1, j = 0; i < n; ++i) {
    size_t bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) std::swap(values[i], values[j]);
  }
  // Those of the stage that joins runs of `half` lie at half .. 2 half - 1, one after the other.
  std::vector<std::complex<double>> turns(n);
  for (size_t half = 1; half < n; half *= 2) {
    for (size_t k = 0; k < half; ++k) {
      const double angle = std::numbers::pi * static_cast<double>(k) / static_cast<double>(half);
      turns[half + k] = {std::cos(angle), is_inverse ? std::sin(angle) : -std::sin(angle)};
    }
  }
  for (size_t half = 1; half < n; half *= 2) {
    for (size_t begin = 0; begin < n; begin += 2 * half) {
      for (size_t k = 0; k < half; ++k) {
        const std::complex<double> turn = turns[half + k], odd = values[begin + half + k];
        // Written out: operator* of complex looks for infinities.
        const std::complex<double> turned(odd.real() * turn.real() - odd.imag() * turn.imag(),
                                          odd.real() * turn.imag() + odd.imag() * turn.real());
        values[begin + half + k] = values[begin + k] - turned;
        values[begin + k] += turned;
      }
    }
  }
  if (!is_inverse) return;
  for (std::complex<double>& value : values) value /= static_cast<double>(n);
}

}  // namespace gradus::privacy::internal
