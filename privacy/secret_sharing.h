// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "privacy/secure_messages.h"

// Shamir's secret sharing (1979, doi:10.1145/359168.359176) of 32 bytes, each byte by itself over
// the field of 256 elements: any `threshold` shares give the secret, fewer are independent of it.
// No branch and no table depends on a secret. Thread-safe.
namespace gradus::privacy {

struct SecretShare {
  uint8_t point = 0;  // where the polynomial was taken, 1 .. 255
  Bytes32 value{};
};

// One share for each of the points, which are different and not 0; 1 <= threshold <= their number.
// The coefficients come from `entropy`.
std::vector<SecretShare> split_secret(const Bytes32& secret, int64_t threshold,
                                      std::span<const uint8_t> points, const Entropy& entropy);

// The secret of exactly `threshold` shares with different points (more do no harm). Wrong shares
// give a wrong secret: check it against something.
Bytes32 recover_secret(std::span<const SecretShare> shares);

}  // namespace gradus::privacy
