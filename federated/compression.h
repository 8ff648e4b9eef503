// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/status.h"

// Updates in fewer bytes. All functions are pure and thread-safe.
//
// int8: blocks of 64 values share a power of two as scale, one byte of it and 64 of values: 3.94
// times fewer bytes than fp32. A power of two makes every decoded value and every remainder exact
// in fp32. top-k: the largest values by size, 8 bytes each: 50 times fewer at 1 %.
namespace gradus::federated {

enum class Compression : uint8_t { kInt8 = 1, kTopK = 2 };

struct CompressionConfig {
  Compression kind = Compression::kInt8;
  double fraction = 0.01;  // of values that top-k keeps, in (0, 1]; one at least
};

// Head of 16 bytes (kind, number of values), then the payload; little-endian. InvalidArgument names
// the first value that is not finite.
Result<std::vector<uint8_t>> compress(const CompressionConfig& config,
                                      std::span<const float> values_P);

// DataLoss says what is wrong with bytes that compress() cannot have made for `num_values` values.
Result<std::vector<float>> decompress(std::span<const uint8_t> bytes, int64_t num_values);

// What compression leaves out is sent later (Seide et al. 2014; Karimireddy et al. 2019,
// arXiv:1901.09847, Alg. 2): v = update + remainder, decoded = C(v), remainder = v - decoded.
// Summed over rounds, decoded updates and the last remainder are the updates: sum D_t = sum
// decoded_t + e_T. One per client, as part of its state. Not thread-safe.
class ErrorFeedback {
 public:
  explicit ErrorFeedback(int64_t num_values) : remainder_P_(static_cast<size_t>(num_values)) {}

  // As compress(), of update + remainder. An error leaves the remainder as it was.
  Result<std::vector<uint8_t>> compress(const CompressionConfig& config,
                                        std::span<const float> update_P);

  std::span<float> remainder() { return remainder_P_; }

 private:
  std::vector<float> remainder_P_;
};

}  // namespace gradus::federated
