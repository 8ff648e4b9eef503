// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "kernels/internal/gemm_kernels.h"
#include "kernels/internal/vec.h"

namespace gradus::kernels::GRADUS_ISA {
namespace {

// A tile is R rows by P panels of accumulators that stay in registers for the whole chain, so each step
// loads P vectors of b and broadcasts R values of a for R * P multiply-adds. R * P accumulators, P vectors
// and one broadcast must fit the register file: 32 zmm, or 16 ymm of half a panel each.
#if defined(GRADUS_ISA_avx512)
constexpr int kMaxRows = 14;
constexpr int panels_for(int rows) { return rows <= 6 ? 4 : rows <= 9 ? 3 : 2; }
#else
constexpr int kMaxRows = 6;
constexpr int panels_for(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#endif

using TileFunction = void (*)(const GemmBlock& block, const float* a, const float* b, float* c,
                              const float* bias);

template <int R, int P>
void tile(const GemmBlock& block, const float* a, const float* b, float* c, const float* bias) {
  const int64_t a_step = block.a_step, b_panel_stride = block.b_panel_stride;
  const int64_t c_row_stride = block.c_row_stride, c_panel_stride = block.c_panel_stride;
  F32x16 sum[R][P];
  if (block.accumulate) {
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < P; ++p) sum[r][p] = load(c + r * c_row_stride + p * c_panel_stride);
    }
  } else {
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < P; ++p) sum[r][p] = zeros();
    }
  }
  for (int64_t i = block.depth; i > 0; --i) {
    F32x16 column[P];
    for (int p = 0; p < P; ++p) column[p] = load(b + p * b_panel_stride);
    for (int r = 0; r < R; ++r) {
      const F32x16 row = broadcast(a[r]);
      for (int p = 0; p < P; ++p) sum[r][p] = fma(row, column[p], sum[r][p]);
    }
    a += a_step;
    b += kLanes;
  }
  for (int p = 0; p < P; ++p) {
    if (bias != nullptr) {
      const F32x16 shift = load(bias + p * kLanes);
      for (int r = 0; r < R; ++r) sum[r][p] = sum[r][p] + shift;
    }
    for (int r = 0; r < R; ++r) store(c + r * c_row_stride + p * c_panel_stride, sum[r][p]);
  }
}

template <int... Rs>
struct Tiles {
  TileFunction wide[kMaxRows + 1] = {nullptr, tile<Rs + 1, panels_for(Rs + 1)>...};
  TileFunction single[kMaxRows + 1] = {nullptr, tile<Rs + 1, 1>...};
};
#if defined(GRADUS_ISA_avx512)
constexpr Tiles<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13> kTiles;
#else
constexpr Tiles<0, 1, 2, 3, 4, 5> kTiles;
#endif

// The last panel where it is narrower than 16: through a buffer, so that columns beyond it are neither read
// nor written.
void narrow_tile(const GemmBlock& block, int rows, const float* a, const float* b, float* c,
                 const float* bias) {
  alignas(64) float buffer[kMaxRows * kLanes];
  const int width = static_cast<int>(block.last_width);
  GemmBlock inner = block;
  inner.c_row_stride = kLanes;
  if (block.accumulate) {
    for (int r = 0; r < rows; ++r) {
      store(buffer + r * kLanes, load_first(c + r * block.c_row_stride, width));
    }
  }
  kTiles.single[rows](inner, a, b, buffer, bias);
  for (int r = 0; r < rows; ++r) {
    store_first(c + r * block.c_row_stride, load(buffer + r * kLanes), width);
  }
}

int64_t panels_at_once(int64_t rows) { return panels_for(static_cast<int>(rows)); }

void multiply(const GemmBlock& block) {
  const int64_t largest = (block.num_rows + block.num_tiles - 1) / block.num_tiles;
  const int64_t group = panels_for(static_cast<int>(largest));
  const int64_t full = block.num_panels - (block.last_width < kLanes ? 1 : 0);
  for (int64_t p = 0; p < block.num_panels;) {
    const bool wide = p + group <= full;
    const int64_t step = wide ? group : 1;
    const float* b = block.b + p * block.b_panel_stride;
    const float* bias = block.bias == nullptr ? nullptr : block.bias + p * kLanes;
    for (int64_t t = block.tile_from; t < block.tile_to; ++t) {
      const int64_t row = tile_begin(block.num_rows, block.num_tiles, t);
      const int rows = static_cast<int>(tile_begin(block.num_rows, block.num_tiles, t + 1) - row);
      const float* a = block.a + t * block.depth * block.a_step;
      float* c = block.c + row * block.c_row_stride + p * block.c_panel_stride;
      if (p >= full) {
        narrow_tile(block, rows, a, b, c, bias);
      } else if (wide && panels_for(rows) == group) {
        kTiles.wide[rows](block, a, b, c, bias);
      } else {
        for (int64_t q = 0; q < step; ++q) {
          kTiles.single[rows](block, a, b + q * block.b_panel_stride, c + q * block.c_panel_stride,
                              bias == nullptr ? nullptr : bias + q * kLanes);
        }
      }
    }
    p += step;
  }
}

// Eight rows of eight into eight columns; rows[r] holds row r.
inline void transpose_8x8(__m256 rows[8]) {
  __m256 pairs[8];
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  __m256 quads[8];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      quads[4 * i + 2 * j] = _mm256_shuffle_ps(pairs[4 * i + j], pairs[4 * i + 2 + j], 0x44);
      quads[4 * i + 2 * j + 1] = _mm256_shuffle_ps(pairs[4 * i + j], pairs[4 * i + 2 + j], 0xEE);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x20);
    rows[4 + i] = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x31);
  }
}

void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t depth, float* out,
               int64_t out_step) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int64_t r0 = 0; r0 < rows; r0 += 8) {
    // Missing rows repeat the last one: what they give is never used.
    const float* source[8];
    for (int64_t r = 0; r < 8; ++r) {
      source[r] = in + (r0 + r < rows ? r0 + r : rows - 1) * in_stride;
    }
    for (int64_t i = 0; i < depth; i += 8) {
      const int64_t count = depth - i < 8 ? depth - i : 8;
      __m256 block[8];
      if (count == 8) {
        for (int r = 0; r < 8; ++r) block[r] = _mm256_loadu_ps(source[r] + i);
      } else {
        const __m256i mask =
            _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
        for (int r = 0; r < 8; ++r) block[r] = _mm256_maskload_ps(source[r] + i, mask);
      }
      transpose_8x8(block);
      float* target = out + i * out_step + r0;
      if (out_step == 4) {
        for (int64_t j = 0; j < count; ++j) {
          _mm_storeu_ps(target + j * out_step, _mm256_castps256_ps128(block[j]));
        }
      } else {
        for (int64_t j = 0; j < count; ++j) _mm256_storeu_ps(target + j * out_step, block[j]);
      }
    }
  }
}

}  // namespace

const GemmKernels& gemm_kernels() {
  static constexpr GemmKernels kernels{kMaxRows, panels_at_once, multiply, transpose};
  return kernels;
}

}  // namespace gradus::kernels::GRADUS_ISA
