// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "kernels/internal/sampling_kernels.h"
#include "kernels/internal/vec.h"

namespace gradus::kernels::GRADUS_ISA {
namespace {

// Eight 32-bit words in the low halves of 64-bit lanes (the high halves hold anything), as the 32 x
// 32 -> 64 multiplication wants them; and sixteen 32-bit words.
#if defined(GRADUS_ISA_avx512)

struct Words8 {
  __m512i v;
};
Words8 same_words(uint32_t word) { return {_mm512_set1_epi64(word)}; }
Words8 consecutive_words(uint32_t first) {
  return {_mm512_add_epi64(_mm512_set1_epi64(first), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7))};
}
Words8 multiply(Words8 a, Words8 b) { return {_mm512_mul_epu32(a.v, b.v)}; }
Words8 high_words(Words8 a) { return {_mm512_srli_epi64(a.v, 32)}; }
Words8 xor_of(Words8 a, Words8 b, Words8 c) {
  return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)};
}

struct Words16 {
  __m512i v;
};
Words16 join(Words8 low, Words8 high) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return {_mm512_permutex2var_epi32(low.v, even, high.v)};
}
void store(uint32_t* p, Words16 a) { _mm512_storeu_si512(p, a.v); }
// The bits of float(r), as a float.
F32x16 float_bits(Words16 r) {
  return {_mm512_cvtepi32_ps(_mm512_castps_si512(_mm512_cvtepu32_ps(r.v)))};
}
constexpr int kDroppedBits = 0;
// Sets of eight counters drawn together: a round waits 7 cycles for itself, so one zmm alone leaves
// the units idle.
constexpr int kSets = 2;

uint32_t at_least(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
uint32_t unordered(F32x16 a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }
int64_t compress_ids(int32_t* ids, int32_t first, uint32_t mask) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i all = _mm512_add_epi32(_mm512_set1_epi32(first), lanes);
  const int count = __builtin_popcount(mask);
  // Compressed in the register and stored with a plain mask: the storing form is many times slower
  // on some processors.
  const __m512i packed = _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), all);
  _mm512_mask_storeu_epi32(ids, static_cast<__mmask16>((1u << count) - 1u), packed);
  return count;
}

#else

struct Words8 {
  __m256i a, b;
};
Words8 same_words(uint32_t word) { return {_mm256_set1_epi64x(word), _mm256_set1_epi64x(word)}; }
Words8 consecutive_words(uint32_t first) {
  const __m256i start = _mm256_set1_epi64x(first);
  return {_mm256_add_epi64(start, _mm256_setr_epi64x(0, 1, 2, 3)),
          _mm256_add_epi64(start, _mm256_setr_epi64x(4, 5, 6, 7))};
}
Words8 multiply(Words8 x, Words8 y) {
  return {_mm256_mul_epu32(x.a, y.a), _mm256_mul_epu32(x.b, y.b)};
}
Words8 high_words(Words8 x) { return {_mm256_srli_epi64(x.a, 32), _mm256_srli_epi64(x.b, 32)}; }
Words8 xor_of(Words8 x, Words8 y, Words8 z) {
  return {_mm256_xor_si256(_mm256_xor_si256(x.a, y.a), z.a),
          _mm256_xor_si256(_mm256_xor_si256(x.b, y.b), z.b)};
}

struct Words16 {
  __m256i a, b;
};
__m256i low_words(Words8 x) {
  const __m256 mixed = _mm256_shuffle_ps(_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b), 0x88);
  return _mm256_permute4x64_epi64(_mm256_castps_si256(mixed), 0xD8);
}
Words16 join(Words8 low, Words8 high) { return {low_words(low), low_words(high)}; }
void store(uint32_t* p, Words16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
// The bits of float(r / 2), as a float: AVX2 converts signed words only.
F32x16 float_bits(Words16 r) {
  const auto bits = [](__m256i words) {
    const __m256 value = _mm256_cvtepi32_ps(_mm256_srli_epi32(words, 1));
    return _mm256_cvtepi32_ps(_mm256_castps_si256(value));
  };
  return {bits(r.a), bits(r.b)};
}
constexpr int kDroppedBits = 1;
// A set is two ymm already; a second one spills the sixteen registers and takes twice as long.
constexpr int kSets = 1;

uint32_t bit_mask(__m256 low, __m256 high) {
  return static_cast<uint32_t>(_mm256_movemask_ps(low)) |
         static_cast<uint32_t>(_mm256_movemask_ps(high)) << 8;
}
uint32_t at_least(F32x16 x, F32x16 y) {
  return bit_mask(_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ));
}
uint32_t unordered(F32x16 x) {
  return bit_mask(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q));
}
int64_t compress_ids(int32_t* ids, int32_t first, uint32_t mask) {
  int64_t count = 0;
  for (; mask != 0; mask &= mask - 1) ids[count++] = first + __builtin_ctz(mask);
  return count;
}

#endif

F32x16 load_or_minus_infinity(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  const int n = static_cast<int>(count);
  return select(first_lanes(n), load_first(p, n), broadcast(-__builtin_inff()));
}

LogitScan scan(const float* z, int64_t v) {
  // Two of each, so that a maximum does not wait for the one before.
  F32x16 largest[2] = {broadcast(-__builtin_inff()), broadcast(-__builtin_inff())};
  uint32_t nan = 0;
  int64_t i = 0;
  for (; i + 2 * kLanes <= v; i += 2 * kLanes) {
    for (int j = 0; j < 2; ++j) {
      const F32x16 logits = load(z + i + j * kLanes);
      largest[j] = max(largest[j], logits);
      nan |= unordered(logits);
    }
  }
  for (; i < v; i += kLanes) {
    const F32x16 logits = load_or_minus_infinity(z + i, v - i);
    largest[0] = max(largest[0], logits);
    nan |= unordered(logits);
  }
  LogitScan result;
  result.max = max_lane(max(largest[0], largest[1]));
  result.has_nan = nan != 0;
  if (result.has_nan) return result;
  const F32x16 target = broadcast(result.max);
  for (i = 0; i < v; i += kLanes) {
    const uint32_t found = at_least(load_or_minus_infinity(z + i, v - i), target);
    if (found != 0) {
      result.argmax = i + __builtin_ctz(found);
      break;
    }
  }
  return result;
}

// Philox4x32-10 of eight counters {c0.., position, 0, version}: out[lane] holds their words `lane`.
struct Philox {
  uint32_t key_low[10], key_high[10];
  uint32_t position;

  Philox(uint64_t seed, uint32_t token_position) : position(token_position) {
    uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      key_low[round] = low;
      key_high[round] = high;
      low += 0x9E3779B9u;
      high += 0xBB67AE85u;
    }
  }

  void draw(const Words8 counters[kSets], Words8 out[kSets][4]) const {
    const Words8 multiplier0 = same_words(0xD2511F53u), multiplier1 = same_words(0xCD9E8D57u);
    for (int s = 0; s < kSets; ++s) {
      out[s][0] = counters[s];
      out[s][1] = same_words(position);
      out[s][2] = same_words(0);
      out[s][3] = same_words(kSamplingVersion);
    }
    for (int round = 0; round < 10; ++round) {
      const Words8 low = same_words(key_low[round]), high = same_words(key_high[round]);
      for (int s = 0; s < kSets; ++s) {
        const Words8 p0 = multiply(out[s][0], multiplier0), p1 = multiply(out[s][2], multiplier1);
        out[s][0] = xor_of(high_words(p1), out[s][1], low);
        out[s][2] = xor_of(high_words(p0), out[s][3], high);
        out[s][1] = p1;
        out[s][3] = p0;
      }
    }
  }
};

// Reports the tokens [first, first + 16) whose bound reaches the threshold.
struct Offers {
  const NoiseScan& scan;
  F32x16 threshold, inverse_temperature, lowest_logit;

  explicit Offers(const NoiseScan& noise_scan)
      : scan(noise_scan),
        threshold(broadcast(noise_scan.threshold)),
        inverse_temperature(broadcast(noise_scan.inverse_temperature)),
        lowest_logit(broadcast(noise_scan.lowest_logit)) {}

  // g = -ln(-ln(1 - u)) <= -ln u <= ln 2^32 - ln r. Reading a float's bits as an integer gives
  // 2^23 (127 + e + m) with e + m <= log2(2^e (1 + m)): a lower bound of log2 r by one conversion,
  // 0.09 below at most. For r = 0 it gives 127 more, above every refined draw.
  void test(int64_t first, Words16 draws) {
    if (first >= scan.v) return;
    constexpr float kLn2 = 0.693147181f;
    const F32x16 logits = load_or_minus_infinity(scan.logits_V + first, scan.v - first);
    const F32x16 noise = fnma(float_bits(draws), broadcast(kLn2 * 0x1p-23f),
                              broadcast(kLn2 * (32 - kDroppedBits + 127)));
    const F32x16 bound = fma(logits, inverse_temperature, noise);
    uint32_t mask = at_least(bound, threshold) & at_least(logits, lowest_logit);
    if (mask == 0) [[likely]]
      return;
    alignas(64) uint32_t words[kLanes];
    store(words, draws);
    float now = 0;
    for (; mask != 0; mask &= mask - 1) {
      const int lane = __builtin_ctz(mask);
      if (first + lane >= scan.v) break;
      now = scan.offer(scan.state, first + lane, words[lane]);
    }
    threshold = broadcast(now);
  }
};

// Tokens come in blocks of 128: counter 32 block + 8 j + i serves tokens 16 j + i (+ 8, + 64, + 72)
// of it.
void scan_noise(const NoiseScan& noise_scan) {
  const Philox philox(noise_scan.seed, noise_scan.position);
  Offers offers(noise_scan);
  const int64_t first_block = noise_scan.first_id / 128;
  for (int64_t block = 0; block * 128 < noise_scan.v; ++block) {
    for (int j = 0; j < 4; j += kSets) {
      Words8 counters[kSets], words[kSets][4];
      for (int s = 0; s < kSets; ++s) {
        counters[s] =
            consecutive_words(static_cast<uint32_t>((first_block + block) * 32 + (j + s) * 8));
      }
      philox.draw(counters, words);
      for (int s = 0; s < kSets; ++s) {
        const int64_t first = block * 128 + (j + s) * kLanes;
        offers.test(first, join(words[s][0], words[s][1]));
        offers.test(first + 64, join(words[s][2], words[s][3]));
      }
    }
  }
}

void group_maxima(const float* z, int64_t v, int64_t chunk, float* maxima) {
  for (int64_t begin = 0; begin < v; begin += chunk) {
    const int64_t end = begin + chunk < v ? begin + chunk : v;
    F32x16 largest = broadcast(-__builtin_inff());
    for (int64_t i = begin; i < end; i += kLanes) {
      largest = max(largest, load_or_minus_infinity(z + i, end - i));
    }
    store(maxima + begin / chunk * kLanes, largest);
  }
}

int64_t collect(const float* z, int64_t v, float lowest, int32_t* ids) {
  const F32x16 least = broadcast(lowest);
  int64_t count = 0;
  int64_t i = 0;
  for (; i + kLanes <= v; i += kLanes) {
    const uint32_t mask = at_least(load(z + i), least);
    if (mask != 0) count += compress_ids(ids + count, static_cast<int32_t>(i), mask);
  }
  if (i < v) {
    const uint32_t mask =
        at_least(load_or_minus_infinity(z + i, v - i), least) & ((1u << (v - i)) - 1u);
    count += compress_ids(ids + count, static_cast<int32_t>(i), mask);
  }
  return count;
}

void weigh(const float* z, const int32_t* ids, int64_t count, float temperature, float largest,
           float* x, float* e) {
  const F32x16 t = broadcast(temperature), m = broadcast(largest);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    alignas(64) float logits[kLanes] = {};
    for (int j = 0; j < n; ++j) logits[j] = z[ids[i + j]];
    const F32x16 scaled = load(logits) / t;
    store_first(x + i, scaled, n);
    store_first(e + i, exp(scaled - m), n);
  }
}

}  // namespace

const SamplingKernels& sampling_kernels() {
  static constexpr SamplingKernels kernels{scan, scan_noise, group_maxima, collect, weigh};
  return kernels;
}

}  // namespace gradus::kernels::GRADUS_ISA
