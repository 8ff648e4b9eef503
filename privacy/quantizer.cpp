// SPDX-License-Identifier: Apache-2.0
#include "privacy/quantizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "common/check.h"
#include "privacy/internal/crypto.h"

namespace gradus::privacy {

Result<Quantizer> Quantizer::make(double range, int64_t num_bits, int64_t num_clients) {
  if (!(range > 0 && std::isfinite(range))) {
    return invalid_argument("secure aggregation: the range is {}; it must be above 0", range);
  }
  if (num_clients < 1) {
    return invalid_argument("secure aggregation: {} clients; there must be at least one",
                            num_clients);
  }
  const int64_t most =
      32 - static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(num_clients - 1)));
  if (num_bits < 2 || num_bits > most) {
    return invalid_argument(
        "secure aggregation: {} bits a value for {} clients; it must be between 2 and {}, so that "
        "their sum fits into 32 bits",
        num_bits, num_clients, most);
  }
  const double largest = std::ldexp(1.0, static_cast<int>(num_bits) - 1) - 1;
  return Quantizer(range, range / largest, largest);
}

Result<int64_t> Quantizer::quantize(std::span<const float> values_P, Rounding rounding,
                                    const Bytes32& key, std::span<uint32_t> numbers_P) const {
  GRADUS_CHECK(values_P.size() == numbers_P.size(), "quantize needs as many numbers as values");
  constexpr size_t kChunk = 1024;
  alignas(64) std::array<uint32_t, kChunk> draws;
  int64_t num_clipped = 0;
  for (size_t begin = 0; begin < values_P.size(); begin += kChunk) {
    const size_t count = std::min(kChunk, values_P.size() - begin);
    if (rounding == Rounding::kStochastic) {
      internal::key_stream(key, static_cast<uint32_t>(begin / 16),
                           {reinterpret_cast<uint8_t*>(draws.data()), count * sizeof(uint32_t)});
    }
    for (size_t i = 0; i < count; ++i) {
      const double value = values_P[begin + i];
      if (!std::isfinite(value)) {
        return invalid_argument("secure aggregation: value {} is {}; all must be finite", begin + i,
                                value);
      }
      const double clipped = std::clamp(value, -range_, range_);
      num_clipped += clipped != value ? 1 : 0;
      const double number = clipped / step_;
      const double rounded = rounding == Rounding::kNearest
                                 ? std::nearbyint(number)
                                 : std::floor(number + draws[i] * 0x1.0p-32);
      numbers_P[begin + i] =
          static_cast<uint32_t>(static_cast<int32_t>(std::clamp(rounded, -largest_, largest_)));
    }
  }
  return num_clipped;
}

std::vector<double> Quantizer::dequantize(std::span<const uint32_t> sums_P) const {
  std::vector<double> values_P(sums_P.size());
  for (size_t i = 0; i < sums_P.size(); ++i) {
    values_P[i] = static_cast<int32_t>(sums_P[i]) * step_;
  }
  return values_P;
}

}  // namespace gradus::privacy
