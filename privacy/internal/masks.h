// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "privacy/secure_messages.h"

namespace gradus::privacy::internal {

// One mask: the words of ChaCha20's key stream under `seed`, uniform over all of 2^32, added or
// subtracted.
struct Mask {
  Bytes32 seed{};
  bool is_negative = false;
};

// values_P += sum of masks, modulo 2^32; parallel over values, the same for any number of threads.
// Less than 2^36 values, the key stream's length.
void add_masks(std::span<const Mask> masks, std::span<uint32_t> values_P);

}  // namespace gradus::privacy::internal
