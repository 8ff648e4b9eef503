// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/status.h"
#include "privacy/secure_messages.h"

// Between updates in floats and the whole numbers modulo 2^32 that secure aggregation adds.
namespace gradus::privacy {

enum class Rounding { kNearest, kStochastic };

// Values in [-range, range] become whole multiples of `step`; sums of up to `num_clients` of them
// never wrap. Thread-safe.
class Quantizer {
 public:
  // range > 0; 2 <= num_bits; num_clients * 2^num_bits <= 2^32. InvalidArgument otherwise.
  static Result<Quantizer> make(double range, int64_t num_bits, int64_t num_clients);

  double step() const { return step_; }
  double range() const { return range_; }

  // The numbers of the values, in two's complement, and how many values were beyond the range and
  // have become its ends. Nearest: off by at most step / 2. Stochastic: up with the probability of
  // the rest, so right on average; the draws are ChaCha20's under `key`. InvalidArgument names the
  // first value that is not finite.
  Result<int64_t> quantize(std::span<const float> values_P, Rounding rounding, const Bytes32& key,
                           std::span<uint32_t> numbers_P) const;

  // The sum of values that the numbers' sum stands for.
  std::vector<double> dequantize(std::span<const uint32_t> sums_P) const;

 private:
  Quantizer(double range, double step, double largest)
      : range_(range), step_(step), largest_(largest) {}

  double range_, step_, largest_;
};

}  // namespace gradus::privacy
