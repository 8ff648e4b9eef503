// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace gradus {

// Counter-based randomness: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3"). A draw is a function of (key, counter) alone, so neither scheduling nor resumption can
// change it. Everything random in Gradus comes from here. Thread-safe: no state.
std::array<uint32_t, 4> philox4x32_10(uint64_t key, const std::array<uint32_t, 4>& counter);

// 64-bit mix of a sequence of words (SplitMix64 finaliser after each): derives one seed from
// others, e.g. request seed = hash64({run_seed, prompt_index, sample_index}).
uint64_t hash64(std::initializer_list<uint64_t> words);

// 64-bit hash of bytes, for names and weights: 8 bytes at a time through the mix of hash64.
uint64_t hash64(std::string_view bytes);

// What a counter's third word is used for, so that two uses never share numbers.
enum class RngStream : uint32_t {
  kSampling = 0,
  kShuffle = 1,
  kTask = 2,
  kInit = 3,
  kBootstrap = 4,
  kTokenChoice = 5
};

// A sequence of draws of one key and stream, for code that wants "the next number". The position is
// the whole state. Not thread-safe; make one per use.
class RngSequence {
 public:
  RngSequence(uint64_t key, RngStream stream) : key_(key), stream_(stream) {}

  uint32_t next_u32();
  uint64_t next_u64();
  // Uniform in [0, bound), without modulo bias; bound >= 1.
  uint64_t below(uint64_t bound);
  // Uniform in [low, high], both included; low <= high.
  int64_t between(int64_t low, int64_t high);
  // Uniform in (0, 1), 53 bits.
  double uniform();
  // Standard normal by Box-Muller.
  double normal();

 private:
  uint64_t key_;
  RngStream stream_;
  uint64_t position_ = 0;
  std::array<uint32_t, 4> block_{};
};

}  // namespace gradus
