// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope.h"

#include <cmath>

#include "common/check.h"
#include "common/parallel.h"
#include "kernels/isa.h"

namespace gradus::kernels {

namespace avx2 {
void rope_rows(const RopeParams& params, int64_t begin, int64_t end);
}
namespace avx512 {
void rope_rows(const RopeParams& params, int64_t begin, int64_t end);
}

void sine_cosine(double x, double& sine, double& cosine) {
  // x = n pi/2 + r, |r| <= pi/4; pi/2 in three parts, the first two of 33 bits, so that n times
  // each is exact for n < 2^20 and the rest is small beyond.
  constexpr double kTwoOverPi = 0.63661977236758134308;
  constexpr double kPart1 = 1.57079632673412561417e+00;
  constexpr double kPart2 = 6.07710050630396597660e-11;
  constexpr double kPart3 = 2.02226624879595063154e-21;
  const double n = std::nearbyint(x * kTwoOverPi);
  double r = std::fma(-n, kPart1, x);
  r = std::fma(-n, kPart2, r);
  r = std::fma(-n, kPart3, r);
  // Taylor series to r^17 and r^16: the first term left out is below 1e-17 at pi/4.
  const double z = r * r;
  double s = 1.0;
  for (int k = 8; k >= 1; --k) s = std::fma(-z / (2.0 * k * (2.0 * k + 1.0)), s, 1.0);
  s *= r;
  double c = 1.0;
  for (int k = 8; k >= 1; --k) c = std::fma(-z / (2.0 * k * (2.0 * k - 1.0)), c, 1.0);
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      sine = s, cosine = c;
      break;
    case 1:
      sine = c, cosine = -s;
      break;
    case 2:
      sine = -s, cosine = -c;
      break;
    default:
      sine = -c, cosine = s;
      break;
  }
}

RopeTable::RopeTable(std::vector<double> frequencies) : frequencies_(std::move(frequencies)) {}

void RopeTable::reserve(int64_t num_positions) {
  if (num_positions <= num_positions_) return;
  GRADUS_CHECK(num_positions <= (int64_t{1} << 24), "rope: position beyond 2^24");
  const int64_t half = half_width();
  cosines_.resize(static_cast<size_t>(num_positions * half));
  sines_.resize(static_cast<size_t>(num_positions * half));
  const int64_t first = num_positions_;
  parallel_for(num_positions - first, 64, [&](int64_t begin, int64_t end) {
    for (int64_t p = first + begin; p < first + end; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        double sine, cosine;
        sine_cosine(static_cast<double>(p) * frequencies_[static_cast<size_t>(i)], sine, cosine);
        cosines_[static_cast<size_t>(p * half + i)] = static_cast<float>(cosine);
        sines_[static_cast<size_t>(p * half + i)] = static_cast<float>(sine);
      }
    }
  });
  num_positions_ = num_positions;
}

void rope(const RopeParams& params) {
  GRADUS_CHECK(params.head_width % 2 == 0, "rope: head_width must be even");
  const auto rows = isa() == Isa::kAvx512 ? avx512::rope_rows : avx2::rope_rows;
  parallel_for(params.t, 16, [&](int64_t begin, int64_t end) { rows(params, begin, end); });
}

}  // namespace gradus::kernels
