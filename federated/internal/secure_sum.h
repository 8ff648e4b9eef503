// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "common/status.h"
#include "federated/round.h"

namespace gradus::federated::internal {

// Secure aggregation of a fixed-point sum (fixed_point.h). Its terms have 52 bits with their sign;
// each is cut into limbs of as many bits as leave room for all clients in 32, so that the limbs'
// sums modulo 2^32, which the protocol gives, are sums, and the whole is the plain one to the bit.

constexpr int kSecureExponent = 40;
constexpr double kSecureMaxValue = 16;   // of an update
constexpr double kSecureMaxWeight = 64;  // products stay below 2^10, where the exponent is 40

struct SecureTerm {
  int64_t client_id = 0;
  double weight = 0;
  std::span<const float> values_P{};
};

// sums_P += sum of weight * values, in units of 2^-40; plays all clients of `plan`, of which those
// without a term leave after their shares are out. At most 1000 clients. Unavailable if the sum
// cannot be had: fewer than 3 clients, or more gone than their shares make up for. InvalidArgument
// names a client whose weight is 64 or more.
Status add_securely(const SecureSum& plan, int64_t round, std::span<const SecureTerm> terms,
                    std::span<int64_t> sums_P);

}  // namespace gradus::federated::internal
