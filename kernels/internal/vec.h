// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <cstdint>

// Sixteen floats as one value, for files compiled once per instruction set (kernels/isa.h): one zmm
// with AVX-512, two ymm with AVX2. Every operation is lane by lane the same IEEE operation in both,
// and sums use one fixed tree, so both sets give equal bits. Loops over longer rows keep 16 lanes
// and mask the tail.
namespace gradus::kernels::GRADUS_ISA {

inline constexpr int kLanes = 16;

#if defined(GRADUS_ISA_avx512)

struct F32x16 {
  __m512 v;
};
struct Mask16 {
  __mmask16 m;
};

inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 zeros() { return {_mm512_setzero_ps()}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
// max(a, b) is b where either is NaN (the rule of maxps).
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Mask16 less(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline F32x16 select(Mask16 m, F32x16 yes, F32x16 no) {
  return {_mm512_mask_blend_ps(m.m, no.v, yes.v)};
}
// The first n lanes, n in [0, 16].
inline Mask16 first_lanes(int n) { return {static_cast<__mmask16>((1u << n) - 1u)}; }
inline F32x16 load_first(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n).m, p)};
}
inline void store_first(float* p, F32x16 a, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n).m, a.v);
}
inline F32x16 round_to_int(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integral n in [-126, 127], n given as float.
inline F32x16 scale_by_power(F32x16 a, F32x16 n) {
  const __m512i shifted =
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(shifted))};
}
inline __m256 low_half(F32x16 a) { return _mm512_castps512_ps256(a.v); }
inline __m256 high_half(F32x16 a) { return _mm512_extractf32x8_ps(a.v, 1); }

#else

struct F32x16 {
  __m256 a, b;  // lanes 0-7 and 8-15
};
struct Mask16 {
  __m256 a, b;
};

inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline F32x16 broadcast(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
inline F32x16 zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline F32x16 fnma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
inline F32x16 operator+(F32x16 x, F32x16 y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
inline F32x16 operator-(F32x16 x, F32x16 y) {
  return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
inline F32x16 operator*(F32x16 x, F32x16 y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
inline F32x16 operator/(F32x16 x, F32x16 y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
// max(a, b) is b where either is NaN (the rule of maxps).
inline F32x16 max(F32x16 x, F32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F32x16 min(F32x16 x, F32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Mask16 less(F32x16 x, F32x16 y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
inline F32x16 select(Mask16 m, F32x16 yes, F32x16 no) {
  return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}
inline __m256i first_lanes_of_8(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first n lanes, n in [0, 16].
inline Mask16 first_lanes(int n) {
  return {_mm256_castsi256_ps(first_lanes_of_8(n)), _mm256_castsi256_ps(first_lanes_of_8(n - 8))};
}
inline F32x16 load_first(const float* p, int n) {
  return {_mm256_maskload_ps(p, first_lanes_of_8(n)),
          _mm256_maskload_ps(p + 8, first_lanes_of_8(n - 8))};
}
inline void store_first(float* p, F32x16 x, int n) {
  _mm256_maskstore_ps(p, first_lanes_of_8(n), x.a);
  _mm256_maskstore_ps(p + 8, first_lanes_of_8(n - 8), x.b);
}
inline F32x16 round_to_int(F32x16 x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integral n in [-126, 127], n given as float.
inline F32x16 scale_by_power(F32x16 x, F32x16 n) {
  const auto power = [](__m256 p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(p), _mm256_set1_epi32(127)), 23));
  };
  return {_mm256_mul_ps(x.a, power(n.a)), _mm256_mul_ps(x.b, power(n.b))};
}
inline __m256 low_half(F32x16 x) { return x.a; }
inline __m256 high_half(F32x16 x) { return x.b; }

#endif

// Sum of the lanes: lane i with i + 8, then + 4, + 2, + 1.
inline float sum_lanes(F32x16 x) {
  const __m256 s8 = _mm256_add_ps(low_half(x), high_half(x));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

inline float max_lane(F32x16 x) {
  const __m256 s8 = _mm256_max_ps(low_half(x), high_half(x));
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}

// exp(x), relative error below 2 ulp for x in [-87.3, 88.3]; exactly 0 below (so exp(-inf) = 0),
// the value at 88.3 above, NaN for NaN. x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial is the
// degree-6 minimax fit of (exp(r) - 1 - r) / r^2 used by Cephes' expf.
inline F32x16 exp(F32x16 x) {
  const F32x16 lowest = broadcast(-87.3f);
  const Mask16 underflows = less(x, lowest);
  const F32x16 clamped = min(broadcast(88.3f), max(lowest, x));  // in this order NaN stays NaN
  const F32x16 n = round_to_int(clamped * broadcast(1.44269504f));
  F32x16 r = fnma(n, broadcast(0.693359375f), clamped);
  r = fnma(n, broadcast(-2.12194440e-4f), r);
  F32x16 p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r) + broadcast(1.0f);
  return select(underflows, zeros(), scale_by_power(p, n));
}

inline float exp(float x) {
  return _mm_cvtss_f32(_mm256_castps256_ps128(low_half(exp(broadcast(x)))));
}

// log(x) of one positive normal float, error below 2 ulp (Cephes' logf): x = m 2^e with m in
// [sqrt(1/2), sqrt(2)). NaN and infinity give themselves.
inline float log(float x) {
  if (!(x <= 3.40282347e+38f)) return x;  // their bits would pass for a number near 2^128
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  int exponent = static_cast<int>(bits >> 23) - 126;
  bits = (bits & 0x007FFFFFu) | 0x3F000000u;
  float m;
  __builtin_memcpy(&m, &bits, 4);
  if (m < 0.707106781f) {
    m = m + m;
    exponent -= 1;
  }
  const float f = m - 1.0f, f2 = f * f, e = static_cast<float>(exponent);
  float p = 7.0376836292e-2f;
  p = __builtin_fmaf(p, f, -1.1514610310e-1f);
  p = __builtin_fmaf(p, f, 1.1676998740e-1f);
  p = __builtin_fmaf(p, f, -1.2420140846e-1f);
  p = __builtin_fmaf(p, f, 1.4249322787e-1f);
  p = __builtin_fmaf(p, f, -1.6668057665e-1f);
  p = __builtin_fmaf(p, f, 2.0000714765e-1f);
  p = __builtin_fmaf(p, f, -2.4999993993e-1f);
  p = __builtin_fmaf(p, f, 3.3333331174e-1f);
  float y = f * f2 * p;
  y = __builtin_fmaf(e, -2.12194440e-4f, y);
  y = __builtin_fmaf(-0.5f, f2, y);
  return __builtin_fmaf(e, 0.693359375f, f + y);
}

}  // namespace gradus::kernels::GRADUS_ISA
