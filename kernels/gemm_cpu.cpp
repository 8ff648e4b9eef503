// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <utility>

#include "kernels/internal/gemm_kernels.h"
#include "kernels/internal/vec.h"

namespace gradus::kernels::GRADUS_ISA {
namespace {

// A tile is R rows by P panels of accumulators that stay in registers for the whole chain, so each
// step loads P vectors of b and broadcasts R values of a for R * P multiply-adds. R * P
// accumulators, P vectors and one broadcast must fit the register file: 32 zmm, or 16 ymm of half a
// panel each. Of the shapes that fit, 8 x 3 and 6 x 4 reach the peak on Sapphire Rapids; 14 x 2
// stops at 90 to 96 %.
#if defined(GRADUS_ISA_avx512)
constexpr int kMaxRows = 8;
constexpr int panels_for(int rows) { return rows <= 6 ? 4 : 3; }
#else
constexpr int kMaxRows = 6;
constexpr int panels_for(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#endif

// Steps of the chain between prefetches.
constexpr int64_t kChunk = 8;

// Lines to fetch while a tile computes: of the weights that come next, so that their first tile
// does not wait for memory, and of the next tile's c, whose loads and stores would wait and hold up
// those behind.
struct Prefetch {
  const float* next_b = nullptr;
  int64_t lines_per_chunk = 0;  // of b; 0: none
  const float* next_c = nullptr;
};

using TileFunction = void (*)(const GemmBlock& block, const float* a, const float* b, float* c,
                              const float* bias, Prefetch prefetch);

#if defined(GRADUS_ISA_avx512)
inline void keep_in_register(F32x16& x) { asm("" : "+v"(x.v)); }
#else
inline void keep_in_register(F32x16&) {}
#endif

alignas(64) constexpr float kZeros[kLanes] = {};

// S is block.a_step, as a constant so that the steps of a chunk share their pointer arithmetic.
template <int R, int P, int S>
void tile(const GemmBlock& block, const float* a, const float* b, float* c, const float* bias,
          Prefetch prefetch) {
  const int64_t b_panel_stride = block.b_panel_stride;
  const int64_t c_row_stride = block.c_row_stride, c_panel_stride = block.c_panel_stride;
  F32x16 sum[R][P];
  // One path for both starts: with a branch here the compiler keeps the sums in memory.
  const float* start = block.accumulate ? c : kZeros;
  const int64_t start_row_stride = block.accumulate ? c_row_stride : 0;
  const int64_t start_panel_stride = block.accumulate ? c_panel_stride : 0;
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      sum[r][p] = load(start + r * start_row_stride + p * start_panel_stride);
    }
  }
  const auto step = [&](int64_t i) {
    F32x16 column[P];
    for (int p = 0; p < P; ++p) {
      column[p] = load(b + p * b_panel_stride + i * kLanes);
      // Used by more than one row, so loaded once: left alone, the compiler reads it anew for each.
      if constexpr (R > 1) keep_in_register(column[p]);
    }
    for (int r = 0; r < R; ++r) {
      const F32x16 row = broadcast(a[i * S + r]);
      for (int p = 0; p < P; ++p) sum[r][p] = fma(row, column[p], sum[r][p]);
    }
  };
  int64_t i = block.depth;
  for (int row = 0; i >= kChunk; i -= kChunk, ++row) {
    if (row < R) {
      for (int p = 0; p < P; ++p) __builtin_prefetch(prefetch.next_c + p * c_panel_stride, 1, 3);
      prefetch.next_c += c_row_stride;
    }
    for (int64_t line = 0; line < prefetch.lines_per_chunk; ++line) {
      __builtin_prefetch(prefetch.next_b, 0, 2);
      prefetch.next_b += kLanes;
    }
#pragma GCC unroll 4
    for (int64_t j = 0; j < kChunk; ++j) step(j);
    a += kChunk * S;
    b += kChunk * kLanes;
  }
  for (int64_t j = 0; j < i; ++j) step(j);
  for (int p = 0; p < P; ++p) {
    if (bias != nullptr) {
      const F32x16 shift = load(bias + p * kLanes);
      for (int r = 0; r < R; ++r) sum[r][p] = sum[r][p] + shift;
    }
    for (int r = 0; r < R; ++r) store(c + r * c_row_stride + p * c_panel_stride, sum[r][p]);
  }
}

// Tile functions by number of rows, for one a_step. The tiles of a block have R and R - 1 rows but
// work on the same number of panels, the one that suits R.
struct Tiles {
  TileFunction wide[kMaxRows + 1], wide_beside_larger[kMaxRows + 1], single[kMaxRows + 1];
};
template <int S, int... Rs>
constexpr Tiles tiles_for(std::integer_sequence<int, Rs...>) {
  return {{nullptr, tile<Rs + 1, panels_for(Rs + 1), S>...},
          {nullptr, tile<Rs + 1, panels_for(Rs + 2), S>...},
          {nullptr, tile<Rs + 1, 1, S>...}};
}
constexpr Tiles kUnpackedTiles = tiles_for<1>(std::make_integer_sequence<int, 1>());
constexpr Tiles kPackedTiles = tiles_for<kPackedStep>(std::make_integer_sequence<int, kMaxRows>());
const Tiles& tiles_of(const GemmBlock& block) {
  return block.a_step == 1 ? kUnpackedTiles : kPackedTiles;
}

// The last panel where it is narrower than 16: through a buffer, so that columns beyond it are
// neither read nor written.
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
  tiles_of(block).single[rows](inner, a, b, buffer, bias, {.next_c = buffer});
  for (int r = 0; r < rows; ++r) {
    store_first(c + r * block.c_row_stride, load(buffer + r * kLanes), width);
  }
}

int64_t panels_at_once(int64_t rows) { return panels_for(static_cast<int>(rows)); }

// All tiles of the block on the panels from p: `width` of them at once, which is the group or 1.
void multiply_panels(const GemmBlock& block, int64_t p, int64_t width) {
  const Tiles& tiles = tiles_of(block);
  const float* b = block.b + p * block.b_panel_stride;
  const float* bias = block.bias == nullptr ? nullptr : block.bias + p * kLanes;
  // The weights behind these panels, shared out over the tiles. One tile alone is bound by its own
  // reading, which the processor's prefetcher does better.
  const int64_t num_tiles = block.tile_to - block.tile_from;
  const int64_t num_lines = width * block.depth;
  const int64_t num_chunks = num_tiles * (block.depth / kChunk);
  const int64_t lines_per_chunk = num_chunks == 0 ? 0 : (num_lines + num_chunks - 1) / num_chunks;
  const float* next = b + width * block.b_panel_stride;
  const float* const next_end = next + num_lines * kLanes;
  const int64_t smaller = block.num_rows / block.num_tiles;
  const int64_t num_larger = block.num_rows % block.num_tiles;
  const int64_t largest = smaller + (num_larger > 0 ? 1 : 0);
  const float* a = block.a + block.tile_from * block.depth * block.a_step;
  float* c = block.c + p * block.c_panel_stride +
             tile_begin(block.num_rows, block.num_tiles, block.tile_from) * block.c_row_stride;
  for (int64_t t = block.tile_from; t < block.tile_to; ++t) {
    const int64_t rows = smaller + (t < num_larger ? 1 : 0);
    float* const next_c = c + rows * block.c_row_stride;
    if (p == block.num_panels - 1 && block.last_width < kLanes) {
      narrow_tile(block, static_cast<int>(rows), a, b, c, bias);
    } else {
      const TileFunction function = width == 1        ? tiles.single[rows]
                                    : rows == largest ? tiles.wide[rows]
                                                      : tiles.wide_beside_larger[rows];
      function(block, a, b, c, bias,
               {.next_b = next,
                .lines_per_chunk = num_tiles > 1 && next < next_end ? lines_per_chunk : 0,
                .next_c = next_c});
      next += lines_per_chunk * (block.depth / kChunk) * kLanes;
    }
    a += block.depth * block.a_step;
    c = next_c;
  }
}

void multiply(const GemmBlock& block) {
  const int64_t group = panels_at_once((block.num_rows + block.num_tiles - 1) / block.num_tiles);
  const int64_t num_full = block.num_panels - (block.last_width < kLanes ? 1 : 0);
  for (int64_t p = 0; p < block.num_panels;) {
    const int64_t width = p + group <= num_full ? group : 1;
    multiply_panels(block, p, width);
    p += width;
  }
}

// Eight rows of eight floats, given by their pointers, into columns[0..7]. Halves of rows i and i +
// 4 are joined while loading, so that the rest stays within 128-bit lanes.
inline void transpose_8x8(const float* const rows[8], int64_t offset, __m256 columns[8]) {
  for (int half = 0; half < 2; ++half) {
    __m256 joined[4];
    for (int i = 0; i < 4; ++i) {
      joined[i] =
          _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[i] + offset + 4 * half)),
                               _mm_loadu_ps(rows[i + 4] + offset + 4 * half), 1);
    }
    const __m256 low01 = _mm256_unpacklo_ps(joined[0], joined[1]);
    const __m256 high01 = _mm256_unpackhi_ps(joined[0], joined[1]);
    const __m256 low23 = _mm256_unpacklo_ps(joined[2], joined[3]);
    const __m256 high23 = _mm256_unpackhi_ps(joined[2], joined[3]);
    columns[4 * half] = _mm256_shuffle_ps(low01, low23, 0x44);
    columns[4 * half + 1] = _mm256_shuffle_ps(low01, low23, 0xEE);
    columns[4 * half + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
    columns[4 * half + 3] = _mm256_shuffle_ps(high01, high23, 0xEE);
  }
}

void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t depth, float* out,
               int64_t out_step) {
  for (int64_t r0 = 0; r0 < rows; r0 += 8) {
    // Missing rows repeat the last one: what they give is never used.
    const float* source[8];
    for (int64_t r = 0; r < 8; ++r) {
      source[r] = in + (r0 + r < rows ? r0 + r : rows - 1) * in_stride;
    }
    __m256 columns[8];
    float* target = out + r0;
    int64_t i = 0;
    for (; i + 8 <= depth; i += 8) {
      transpose_8x8(source, i, columns);
      for (int j = 0; j < 8; ++j) _mm256_storeu_ps(target + j * out_step, columns[j]);
      target += 8 * out_step;
    }
    if (i < depth) {
      alignas(32) float rest[8][8];
      const float* rest_rows[8];
      for (int r = 0; r < 8; ++r) {
        for (int64_t j = 0; j < 8; ++j) rest[r][j] = i + j < depth ? source[r][i + j] : 0.0f;
        rest_rows[r] = rest[r];
      }
      transpose_8x8(rest_rows, 0, columns);
      for (int64_t j = 0; i + j < depth; ++j) _mm256_storeu_ps(target + j * out_step, columns[j]);
    }
  }
}

void copy_columns(const float* in, int64_t in_stride, int64_t width, int64_t depth, float* out,
                  int64_t out_step) {
  // Each row is a line or half of one, on a page of its own: the processor does not see the next
  // coming.
  constexpr int64_t kRowsAhead = 16;
  const auto fetch = [&](int64_t i) {
    __builtin_prefetch(in + (i + kRowsAhead) * in_stride);
    __builtin_prefetch(in + (i + kRowsAhead) * in_stride + width - 1);
  };
  if (width == kLanes) {
    for (int64_t i = 0; i < depth; ++i) {
      fetch(i);
      store(out + i * out_step, load(in + i * in_stride));
    }
  } else if (width == 8 && out_step == 8) {
    for (int64_t i = 0; i < depth; ++i) {
      fetch(i);
      _mm256_storeu_ps(out + i * out_step, _mm256_loadu_ps(in + i * in_stride));
    }
  } else {
    const int n = static_cast<int>(width), step = static_cast<int>(out_step);
    for (int64_t i = 0; i < depth; ++i) {
      fetch(i);
      store_first(out + i * out_step, load_first(in + i * in_stride, n), step);
    }
  }
}

}  // namespace

const GemmKernels& gemm_kernels() {
  static constexpr GemmKernels kernels{kMaxRows, panels_at_once, multiply, transpose, copy_columns};
  return kernels;
}

}  // namespace gradus::kernels::GRADUS_ISA
