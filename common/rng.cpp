// SPDX-License-Identifier: Apache-2.0
#include "common/rng.h"

#include <cmath>
#include <cstring>
#include <numbers>

#include "common/check.h"

namespace gradus {
namespace {

uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

}  // namespace

std::array<uint32_t, 4> philox4x32_10(uint64_t key, const std::array<uint32_t, 4>& counter) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  std::array<uint32_t, 4> c = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = kMultiplier0 * c[0], p1 = kMultiplier1 * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c;
}

uint64_t hash64(std::initializer_list<uint64_t> words) {
  uint64_t hash = words.size();
  for (const uint64_t word : words) hash = mix64(hash ^ mix64(word));
  return hash;
}

uint64_t hash64(std::string_view bytes) {
  uint64_t hash = bytes.size();
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    hash = mix64(hash ^ word);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, bytes.data() + i, bytes.size() - i);
  return mix64(hash ^ mix64(tail));
}

uint32_t RngSequence::next_u32() {
  const uint32_t lane = position_ & 3;
  if (lane == 0) {
    const uint64_t block = position_ >> 2;
    block_ = philox4x32_10(key_, {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                  static_cast<uint32_t>(stream_) << 24, 0});
  }
  ++position_;
  return block_[lane];
}

uint64_t RngSequence::next_u64() {
  const uint64_t high = next_u32();
  return high << 32 | next_u32();
}

uint64_t RngSequence::below(uint64_t bound) {
  GRADUS_CHECK(bound >= 1, "RngSequence::below needs a bound of at least 1");
  const uint64_t limit = UINT64_MAX - (UINT64_MAX % bound + 1) % bound;
  uint64_t draw = next_u64();
  while (draw > limit) draw = next_u64();
  return draw % bound;
}

int64_t RngSequence::between(int64_t low, int64_t high) {
  GRADUS_CHECK(low <= high, "RngSequence::between needs low <= high");
  return low + static_cast<int64_t>(below(static_cast<uint64_t>(high - low) + 1));
}

double RngSequence::uniform() { return (static_cast<double>(next_u64() >> 11) + 0.5) * 0x1.0p-53; }

double RngSequence::normal() {
  const double radius = std::sqrt(-2.0 * std::log(uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

}  // namespace gradus
