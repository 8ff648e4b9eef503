// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/internal/lm_head_args.h"
#include "kernels/internal/sampling_kernels.h"

// The numbers of the language-model head, one definition each: sampler, scorer and training share
// them, so that their bits agree.
namespace gradus::kernels::cuda {

// The T at this offset of the block's dynamic shared memory. Functions that are not inlined name
// shared memory so, not by a pointer: behind one the compiler must allow for global memory, and an
// atomic addition takes microseconds.
template <class T>
__device__ inline T& at_shared(uint32_t offset) {
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  return *reinterpret_cast<T*>(dynamic_shared + offset);
}

inline constexpr float kLog2E = 1.44269504088896341f;

// Division by the temperature: both numbers are kept, and z / T is rounded correctly by one step of
// Newton's from z (1 / T), so that it costs three operations.
struct Scale {
  float reciprocal, temperature;
};
__device__ inline Scale scale_of(float temperature) {
  return {__frcp_rn(temperature), temperature};
}
__device__ inline float scaled(float z, Scale s) {
  const float q = z * s.reciprocal;
  return __fmaf_rn(__fmaf_rn(-q, s.temperature, z), s.reciprocal, q);
}

// 2^y and e^d, d <= 0, relative error 2^-22; 0 far below.
__device__ inline float exp2_fast(float y) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(y));
  return r;
}
__device__ inline float exp_fast(float d) { return exp2_fast(d * kLog2E); }

// The larger; NaN if either is, so that a bad logit shows in the end.
__device__ inline float max_or_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

// max, sum and weighted of two parts together; the same bits in either order.
struct Sums {
  float max, sum, weighted;
};
__device__ inline Sums merge(Sums a, Sums b) {
  if (b.max > a.max) {
    const Sums t = a;
    a = b;
    b = t;
  }
  const float d = b.max - a.max;
  if (b.max == -INFINITY) return a;
  const float e = exp_fast(d);
  return {max_or_nan(a.max, b.max), __fmaf_rn(e, b.sum, a.sum),
          __fmaf_rn(e, __fmaf_rn(d, b.sum, b.weighted), a.weighted)};
}

// The bits of a float or double as an unsigned number of the same order.
__device__ inline uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_ordered(uint32_t bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits);
}

// Score and token in one number, larger is better: 40 bits of the score as a double (steps of 2^-28
// of it), then the lower id. 0 is nobody.
__device__ inline uint64_t score_key(double score, int32_t id) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(score));
  const uint64_t up = bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
  return (up & ~0xFFFFFFull) | (0xFFFFFFu - static_cast<uint32_t>(id));
}
__device__ inline int32_t key_token(uint64_t key) {
  return static_cast<int32_t>(0xFFFFFFu - static_cast<uint32_t>(key & 0xFFFFFFu));
}
// At most the score.
__device__ inline float key_score(uint64_t key) {
  if (key == 0) return -INFINITY;
  const uint64_t up = key & ~0xFFFFFFull;
  const uint64_t bits = up >> 63 ? up & 0x7FFFFFFFFFFFFFFFull : ~up;
  return __double2float_rd(__longlong_as_double(static_cast<int64_t>(bits)));
}

// --- noise, as in kernels/sampling.h ---

struct Words4 {
  uint32_t w[4];
};
__device__ inline Words4 philox(uint32_t key_low, uint32_t key_high, uint32_t c0, uint32_t c1,
                                uint32_t c3) {
  uint32_t c2 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key_low;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key_high;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}
// The counter's first word for a token, and which of the four words is its own.
__device__ inline uint32_t noise_counter(uint32_t id) {
  return (id >> 7) << 5 | (id >> 4 & 3) << 3 | (id & 7);
}
__device__ inline uint32_t noise_word(uint32_t id) { return 2 * (id >> 6 & 1) + (id >> 3 & 1); }
struct NoiseKey {
  uint32_t low, high, position;
};
__device__ inline uint32_t noise_draw(NoiseKey key, uint32_t id, uint32_t version) {
  const Words4 words = philox(key.low, key.high, noise_counter(id), key.position, version);
  const uint32_t w = noise_word(id);
  return w & 2 ? (w & 1 ? words.w[3] : words.w[2]) : (w & 1 ? words.w[1] : words.w[0]);
}
// g = -ln(-ln(1 - u)), in double.
static __device__ __noinline__ double gumbel(NoiseKey key, uint32_t id) {
  const uint32_t r = noise_draw(key, id, kSamplingVersion);
  double u = (r + 0.5) * 0x1p-32;
  if (r < kRefineBelow) {
    u = (r * 0x1p32 + noise_draw(key, id, kSamplingVersion + 1) + 0.5) * 0x1p-64;
  }
  return -log(-log1p(-u));
}
// Within 1e-4 of it for u in (0, 1].
__device__ inline float gumbel_of_uniform(float u) {
  const float e = u < 0.02f ? u + u * u * (0.5f + u * (1.0f / 3)) : -__logf(1.0f - u);
  return -__logf(e);
}
// The same for a draw r; more than any g, kGumbelUnknown, for one that needs 64 bits.
inline constexpr float kGumbelUnknown = 64.0f;
inline constexpr float kGumbelSlack = 1e-3f;
__device__ inline float gumbel_fast(uint32_t r) {
  if (r < kRefineBelow) return kGumbelUnknown;
  return gumbel_of_uniform((static_cast<float>(r) + 0.5f) * 0x1p-32f);
}

}  // namespace gradus::kernels::cuda
