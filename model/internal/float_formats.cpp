// SPDX-License-Identifier: Apache-2.0
#include "model/internal/float_formats.h"

#include <immintrin.h>

#include <bit>
#include <cstring>

namespace gradus::model {

void f16_to_f32(const std::byte* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
  for (; i < n; ++i) {
    uint16_t half;
    std::memcpy(&half, in + 2 * i, sizeof(half));
    out[i] = _cvtsh_ss(half);
  }
}

void bf16_to_f32(const std::byte* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i));
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
    _mm256_storeu_ps(out + i, _mm256_castsi256_ps(bits));
  }
  for (; i < n; ++i) {
    uint16_t half;
    std::memcpy(&half, in + 2 * i, sizeof(half));
    out[i] = std::bit_cast<float>(uint32_t{half} << 16);
  }
}

void f32_to_bf16(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(in[i]);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    // Half an ulp of the result, less one when the bit that stays last is even: ties go to even. A
    // NaN could overflow into infinity that way; it gets its quiet bit instead.
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    out[i] = static_cast<uint16_t>((is_nan ? (bits | 0x00400000u) : rounded) >> 16);
  }
}

int64_t count_non_finite(const float* values, int64_t n) {
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  __m256i counts =
      _mm256_setzero_si256();  // lanes count down; n / 8 < 2^31 for any tensor of a model
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
    counts =
        _mm256_add_epi32(counts, _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent));
  }
  int32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), counts);
  int64_t count = 0;
  for (const int32_t lane : lanes) count -= lane;
  for (; i < n; ++i) {
    count += (std::bit_cast<uint32_t>(values[i]) & 0x7f800000u) == 0x7f800000u;
  }
  return count;
}

}  // namespace gradus::model
