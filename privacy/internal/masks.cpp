// SPDX-License-Identifier: Apache-2.0
#include "privacy/internal/masks.h"

#include <algorithm>
#include <array>

#include "common/check.h"
#include "common/parallel.h"
#include "privacy/internal/crypto.h"

namespace gradus::privacy::internal {

void add_masks(std::span<const Mask> masks, std::span<uint32_t> values_P) {
  // Of a size at which the stream, the scratch and the values stay in the first cache.
  constexpr int64_t kChunk = 2048;
  constexpr int64_t kWordsPerBlock = 16;
  const auto length = static_cast<int64_t>(values_P.size());
  GRADUS_CHECK(length < int64_t{1} << 36, "more values than ChaCha20's key stream has words");
  if (masks.empty()) return;
  const int64_t num_chunks = (length + kChunk - 1) / kChunk;
  parallel_for(num_chunks, 4, [&](int64_t first, int64_t last) {
    alignas(64) std::array<uint8_t, kChunk * sizeof(uint32_t)> bytes;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk;
      const int64_t count = std::min(kChunk, length - begin);
      uint32_t* values = values_P.data() + begin;
      // Words are little-endian, as is every processor that the build knows.
      const auto* words = reinterpret_cast<const uint32_t*>(bytes.data());
      for (const Mask& mask : masks) {
        key_stream(mask.seed, static_cast<uint32_t>(begin / kWordsPerBlock),
                   {bytes.data(), static_cast<size_t>(count) * sizeof(uint32_t)});
        if (mask.is_negative) {
          for (int64_t i = 0; i < count; ++i) values[i] -= words[i];
        } else {
          for (int64_t i = 0; i < count; ++i) values[i] += words[i];
        }
      }
    }
  });
}

}  // namespace gradus::privacy::internal
