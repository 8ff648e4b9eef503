// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// Floats per step of the chain in a packed tile, at least the rows of the largest tile.
inline constexpr int64_t kPackedStep = 8;

// What the three products of gemm.h share: c[r, j] = chain over i of a[i, r] b[i, j], with a in row
// tiles and b in panels of 16 columns. gemm.cpp packs, blocks and shares out the work; the
// instruction sets provide these loops.
struct GemmBlock {
  // Rows are cut into num_tiles tiles of nearly equal size (tile_begin below); tile t, of depth
  // `depth`, is at a + t * depth * a_step, its rows side by side and a_step = kPackedStep floats
  // per i. One row needs no packing: a_step 1.
  const float* a = nullptr;
  int64_t a_step = 0;
  int64_t num_rows = 0, num_tiles = 0;
  int64_t tile_from = 0, tile_to = 0;  // the tiles of this call
  int64_t depth = 0;                   // length of the chain
  // Panel p is [depth][16] at b + p * b_panel_stride. Panels [0, num_panels), all 16 wide but for
  // the last, of which only last_width columns are stored.
  const float* b = nullptr;
  int64_t b_panel_stride = 0;
  int64_t num_panels = 0, last_width = 16;
  // c[r, 16 p + j] is at c + r * c_row_stride + p * c_panel_stride + j.
  float* c = nullptr;
  int64_t c_row_stride = 0, c_panel_stride = 0;
  bool accumulate = false;      // chains go on from c instead of 0
  const float* bias = nullptr;  // [16 * num_panels] or null; added after the chain
};

// The first row of a tile: the first num_rows % num_tiles tiles have one row more than the others.
// Internal linkage: see kernels/isa.h.
static inline int64_t tile_begin(int64_t num_rows, int64_t num_tiles, int64_t tile) {
  const int64_t larger = num_rows % num_tiles;
  return num_rows / num_tiles * tile + (tile < larger ? tile : larger);
}

struct GemmKernels {
  int64_t max_rows;  // of a tile
  // Panels that one pass over a tile of `rows` rows works on: work should be cut in multiples of
  // it.
  int64_t (*panels_at_once)(int64_t rows);
  void (*multiply)(const GemmBlock& block);
  // out[i * out_step + r] = in[r * in_stride + i] for r in [0, rows), i in [0, depth); out_step is
  // 8 or 16 and
  // >= rows; the floats between are undefined.
  void (*transpose)(const float* in, int64_t in_stride, int64_t rows, int64_t depth, float* out,
                    int64_t out_step);
  // out[i * out_step + j] = in[i * in_stride + j] for i in [0, depth), j in [0, width), and 0 for j
  // in [width, out_step); out_step is 8 or 16.
  void (*copy_columns)(const float* in, int64_t in_stride, int64_t width, int64_t depth, float* out,
                       int64_t out_step);
};

namespace avx2 {
const GemmKernels& gemm_kernels();
}
namespace avx512 {
const GemmKernels& gemm_kernels();
}

}  // namespace gradus::kernels
