// SPDX-License-Identifier: Apache-2.0
#include "bench/kernels/roof.h"

#include <immintrin.h>
#include <sys/mman.h>
#include <time.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "common/parallel.h"
#include "kernels/isa.h"

namespace gradus::bench {
namespace {

constexpr int64_t kSteps = 40000;
constexpr int kChains = 12;  // at least latency 4 x 2 units

// The sum of the chains is returned so that they are computed.
__attribute__((target("avx512f"))) float chains_avx512() {
  __m512 c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11;
  c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = c8 = c9 = c10 = c11 = _mm512_set1_ps(0.5f);
  const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
  for (int64_t i = 0; i < kSteps; ++i) {
    c0 = _mm512_fmadd_ps(c0, x, y);
    c1 = _mm512_fmadd_ps(c1, x, y);
    c2 = _mm512_fmadd_ps(c2, x, y);
    c3 = _mm512_fmadd_ps(c3, x, y);
    c4 = _mm512_fmadd_ps(c4, x, y);
    c5 = _mm512_fmadd_ps(c5, x, y);
    c6 = _mm512_fmadd_ps(c6, x, y);
    c7 = _mm512_fmadd_ps(c7, x, y);
    c8 = _mm512_fmadd_ps(c8, x, y);
    c9 = _mm512_fmadd_ps(c9, x, y);
    c10 = _mm512_fmadd_ps(c10, x, y);
    c11 = _mm512_fmadd_ps(c11, x, y);
    // Keeps the compiler from seeing that all chains are the same.
    asm("" : "+v"(c0), "+v"(c1), "+v"(c2), "+v"(c3), "+v"(c4), "+v"(c5));
    asm("" : "+v"(c6), "+v"(c7), "+v"(c8), "+v"(c9), "+v"(c10), "+v"(c11));
  }
  const __m512 sum = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11;
  return _mm512_cvtss_f32(sum);
}

float chains_avx2() {
  __m256 c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11;
  c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = c8 = c9 = c10 = c11 = _mm256_set1_ps(0.5f);
  const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
  for (int64_t i = 0; i < kSteps; ++i) {
    c0 = _mm256_fmadd_ps(c0, x, y);
    c1 = _mm256_fmadd_ps(c1, x, y);
    c2 = _mm256_fmadd_ps(c2, x, y);
    c3 = _mm256_fmadd_ps(c3, x, y);
    c4 = _mm256_fmadd_ps(c4, x, y);
    c5 = _mm256_fmadd_ps(c5, x, y);
    c6 = _mm256_fmadd_ps(c6, x, y);
    c7 = _mm256_fmadd_ps(c7, x, y);
    c8 = _mm256_fmadd_ps(c8, x, y);
    c9 = _mm256_fmadd_ps(c9, x, y);
    c10 = _mm256_fmadd_ps(c10, x, y);
    c11 = _mm256_fmadd_ps(c11, x, y);
    asm("" : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5));
    asm("" : "+x"(c6), "+x"(c7), "+x"(c8), "+x"(c9), "+x"(c10), "+x"(c11));
  }
  const __m256 sum = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11;
  return _mm256_cvtss_f32(sum);
}

std::atomic<float> sink{0};

}  // namespace

double seconds() {
  timespec now;
  clock_gettime(num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double fma_gflops() {
  const bool wide = kernels::isa() == kernels::Isa::kAvx512;
  const double start = seconds();
  parallel_for(num_threads(), 1,
               [&](int64_t, int64_t) { sink = wide ? chains_avx512() : chains_avx2(); });
  const double flops = 2.0 * (wide ? 16 : 8) * kChains * kSteps * num_threads();
  return flops / (seconds() - start) * 1e-9;
}

double read_gb_per_s(const float* data, int64_t count) {
  constexpr int64_t kChunk = 1 << 16;
  const double start = seconds();
  parallel_for(count / kChunk, 1, [&](int64_t begin, int64_t end) {
    __m256 s0 = {}, s1 = {}, s2 = {}, s3 = {};
    for (const float* p = data + begin * kChunk; p < data + end * kChunk; p += 32) {
      s0 += _mm256_load_ps(p);
      s1 += _mm256_load_ps(p + 8);
      s2 += _mm256_load_ps(p + 16);
      s3 += _mm256_load_ps(p + 24);
    }
    sink = _mm256_cvtss_f32(s0 + s1 + s2 + s3);
  });
  return static_cast<double>(count / kChunk * kChunk) * 4 / (seconds() - start) * 1e-9;
}

float* make_floats(int64_t count) {
  constexpr size_t kHugePage = 2 << 20;
  const size_t bytes =
      (static_cast<size_t>(count) * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = std::aligned_alloc(kHugePage, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  madvise(memory, bytes, MADV_HUGEPAGE);
  float* floats = static_cast<float*>(memory);
  uint32_t state = 1;
  for (size_t i = 0; i < bytes / sizeof(float); ++i) {
    state = state * 1664525u + 1013904223u;
    floats[i] = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
  }
  return floats;
}

}  // namespace gradus::bench
