// SPDX-License-Identifier: Apache-2.0
#include "privacy/secret_sharing.h"

#include <set>

#include "common/check.h"
#include "privacy/internal/crypto.h"

namespace gradus::privacy {
namespace {

// Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
uint8_t multiply(uint8_t a, uint8_t b) {
  uint32_t product = 0;
  for (int bit = 0; bit < 8; ++bit) {
    product ^= (0u - ((b >> bit) & 1u)) & (static_cast<uint32_t>(a) << bit);
  }
  for (int bit = 14; bit >= 8; --bit) {
    product ^= (0u - ((product >> bit) & 1u)) & (0x11Bu << (bit - 8));
  }
  return static_cast<uint8_t>(product);
}

// a^254, as a^255 = 1.
uint8_t inverse(uint8_t a) {
  uint8_t result = 1, power = a;
  for (int bit = 1; bit < 8; ++bit) {
    power = multiply(power, power);
    result = multiply(result, power);
  }
  return result;
}

void check_points(const std::set<uint8_t>& points, size_t count) {
  GRADUS_CHECK(points.size() == count && count > 0 && !points.contains(0),
               "secret sharing needs different points, none of them 0");
}

}  // namespace

std::vector<SecretShare> split_secret(const Bytes32& secret, int64_t threshold,
                                      std::span<const uint8_t> points, const Entropy& entropy) {
  check_points({points.begin(), points.end()}, points.size());
  GRADUS_CHECK(threshold >= 1 && threshold <= static_cast<int64_t>(points.size()),
               "secret sharing needs a threshold between 1 and the number of shares");
  // [threshold - 1, 32], the lowest degree last.
  std::vector<uint8_t> coefficients(static_cast<size_t>(threshold - 1) * secret.size());
  entropy(coefficients);
  std::vector<SecretShare> shares;
  for (const uint8_t point : points) {
    SecretShare share{.point = point};
    for (int64_t degree = 0; degree < threshold - 1; ++degree) {
      for (size_t i = 0; i < secret.size(); ++i) {
        share.value[i] =
            static_cast<uint8_t>(multiply(share.value[i], point) ^
                                 coefficients[static_cast<size_t>(degree) * secret.size() + i]);
      }
    }
    for (size_t i = 0; i < secret.size(); ++i) {
      share.value[i] = static_cast<uint8_t>(multiply(share.value[i], point) ^ secret[i]);
    }
    shares.push_back(share);
  }
  internal::wipe(coefficients);
  return shares;
}

Bytes32 recover_secret(std::span<const SecretShare> shares) {
  std::set<uint8_t> points;
  for (const SecretShare& share : shares) points.insert(share.point);
  check_points(points, shares.size());
  Bytes32 secret{};
  for (const SecretShare& share : shares) {
    // Lagrange's weight of this share at 0; subtraction is exclusive or.
    uint8_t weight = 1;
    for (const SecretShare& other : shares) {
      if (other.point == share.point) continue;
      weight = multiply(
          weight, multiply(other.point, inverse(static_cast<uint8_t>(other.point ^ share.point))));
    }
    for (size_t i = 0; i < secret.size(); ++i) {
      secret[i] = static_cast<uint8_t>(secret[i] ^ multiply(share.value[i], weight));
    }
  }
  return secret;
}

}  // namespace gradus::privacy
