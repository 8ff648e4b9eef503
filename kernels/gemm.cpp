// SPDX-License-Identifier: Apache-2.0
#include "kernels/gemm.h"

#include <algorithm>
#include <string>

#include "common/check.h"
#include "common/parallel.h"
#include "kernels/internal/gemm_kernels.h"
#include "kernels/internal/workspace.h"
#include "kernels/isa.h"

namespace gradus::kernels {
namespace {

// What a core does per nanosecond, roughly: only decides what is worth sharing out.
constexpr double kFlopsPerNs = 100, kBytesPerNs = 15;
// A job below this stays in its thread: waking and joining the others costs about 2 us when they
// spin, and the estimate above is coarse.
constexpr double kSerialNs = 15000;
// Work handed out at once: long beside the counter that hands it out, short beside the whole.
constexpr double kGrainNs = 4000;
// The packed rows of one block: they are read once per panel group, so they should stay in a core's
// L2.
constexpr int64_t kBlockFloats = 5 << 16;
// Longest part of the chain at once in forward: three panels of it are 384 KiB.
constexpr int64_t kForwardDepth = 2048;
// Depth of the blocks of backward_input: three panels of transposed weights are 48 KiB, and 1,280
// rows fit a block, so that most batches transpose each weight once.
constexpr int64_t kBackwardDepth = 256;

const GemmKernels& gemm_kernels() {
  return isa() == Isa::kAvx512 ? avx512::gemm_kernels() : avx2::gemm_kernels();
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

double cost_ns(int64_t rows, int64_t columns, int64_t depth) {
  const double weights = static_cast<double>(columns) * static_cast<double>(depth);
  return std::max(2 * weights * static_cast<double>(rows) / kFlopsPerNs, 4 * weights / kBytesPerNs);
}

// Runs body(i) for i in [0, count), items of item_ns each, on all threads if that pays.
template <class Body>
void for_items(int64_t count, double item_ns, const Body& body) {
  const auto range = [&body](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  };
  if (static_cast<double>(count) * item_ns < kSerialNs) {
    range(0, count);
    return;
  }
  const int64_t grain = static_cast<int64_t>(kGrainNs / item_ns) + 1;
  parallel_for(count, std::min(grain, ceil_div(count, 4 * num_threads())), range);
}

// How rows are cut into register tiles and laid out.
struct Tiling {
  int64_t num_rows, num_tiles, rows;

  Tiling(int64_t row_count, int64_t max_rows)
      : num_rows(row_count),
        num_tiles(ceil_div(row_count, max_rows)),
        rows(ceil_div(row_count, num_tiles)) {}
  int64_t begin(int64_t tile) const { return tile_begin(num_rows, num_tiles, tile); }
};

// Rows per block so that the packed block stays within kBlockFloats; whole tiles, at least four.
int64_t block_rows(int64_t depth, int64_t max_rows) {
  return std::max<int64_t>(4, kBlockFloats / (depth * max_rows)) * max_rows;
}

// Transposes rows of x [num_rows, depth] into tiles of the shared workspace.
const float* pack_rows(const GemmKernels& kernels, const Tiling& tiling, const float* x,
                       int64_t x_stride, int64_t depth) {
  float* packed =
      workspace<float>(Slot::kShared, static_cast<size_t>(tiling.num_tiles * depth * kPackedStep));
  const double item_ns = static_cast<double>(tiling.rows * depth) * 0.15;
  for_items(tiling.num_tiles, item_ns, [&](int64_t t) {
    const int64_t row = tiling.begin(t);
    kernels.transpose(x + row * x_stride, x_stride, tiling.begin(t + 1) - row, depth,
                      packed + t * depth * kPackedStep, kPackedStep);
  });
  return packed;
}

// Cuts the product into items of some panels by some tiles: panels alone if they are enough for the
// threads.
struct Items {
  int64_t group, num_groups, num_row_parts, num_panels, num_tiles;

  Items(const GemmKernels& kernels, const Tiling& tiling, int64_t panels)
      : group(kernels.panels_at_once(tiling.rows)),
        num_groups(ceil_div(panels, group)),
        num_row_parts(std::min(tiling.num_tiles, ceil_div(4 * num_threads(), num_groups))),
        num_panels(panels),
        num_tiles(tiling.num_tiles) {}
  int64_t count() const { return num_groups * num_row_parts; }
  int64_t panel_from(int64_t item) const { return item / num_row_parts * group; }
  int64_t panel_to(int64_t item) const { return std::min(num_panels, panel_from(item) + group); }
  int64_t tile_from(int64_t item) const {
    return tile_begin(num_tiles, num_row_parts, item % num_row_parts);
  }
  int64_t tile_to(int64_t item) const {
    return tile_begin(num_tiles, num_row_parts, item % num_row_parts + 1);
  }
};

void check_sizes(const char* name, int64_t m, int64_t n, int64_t k) {
  GRADUS_CHECK(m >= 0 && n >= 0 && k >= 0, std::string(name) + " needs sizes of at least 0");
}

}  // namespace

void pack_weight(const float* w_NK, int64_t w_stride, int64_t n, int64_t k, float* w_packed) {
  if (n == 0 || k == 0) return;
  const GemmKernels& kernels = gemm_kernels();
  for_items(padded(n) / kPanelWidth, static_cast<double>(k * kPanelWidth) * 0.3, [&](int64_t p) {
    const int64_t begin = p * kPanelWidth, width = std::min(kPanelWidth, n - begin);
    float* panel = w_packed + begin * k;
    kernels.transpose(w_NK + begin * w_stride, w_stride, width, k, panel, kPanelWidth);
    for (int64_t i = 0; width < kPanelWidth && i < k; ++i) {
      std::fill(panel + i * kPanelWidth + width, panel + (i + 1) * kPanelWidth, 0.0f);
    }
  });
}

void unpack_weight(const float* w_packed, int64_t n, int64_t k, float* w_NK, int64_t w_stride) {
  for (int64_t row = 0; row < n; ++row) {
    const float* column = w_packed + row / kPanelWidth * kPanelWidth * k + row % kPanelWidth;
    for (int64_t i = 0; i < k; ++i) w_NK[row * w_stride + i] = column[i * kPanelWidth];
  }
}

void gemm_forward(const GemmForwardParams& params) {
  check_sizes("gemm_forward", params.m, params.n, params.k);
  GRADUS_CHECK(
      params.m <= 1 || (params.x_stride >= params.k && params.y_stride >= padded(params.n)),
      "gemm_forward: rows overlap");
  if (params.m == 0 || params.n == 0) return;
  const GemmKernels& kernels = gemm_kernels();
  const int64_t num_panels = padded(params.n) / kPanelWidth;
  const int64_t most_depth = std::clamp<int64_t>(params.k, 1, kForwardDepth);
  const int64_t rows_at_once = block_rows(most_depth, kernels.max_rows);
  for (int64_t m = 0; m < params.m; m += rows_at_once) {
    const Tiling tiling(std::min(rows_at_once, params.m - m), kernels.max_rows);
    const Items items(kernels, tiling, num_panels);
    for (int64_t k = 0; k == 0 || k < params.k; k += most_depth) {
      const int64_t depth = std::min(most_depth, params.k - k);
      const float* x = params.x_MK + m * params.x_stride + k;
      const float* a =
          tiling.num_rows == 1 ? x : pack_rows(kernels, tiling, x, params.x_stride, depth);
      const bool is_last = k + depth == params.k;
      const double item_ns = cost_ns(tiling.num_rows, num_panels * kPanelWidth, depth) /
                             static_cast<double>(items.count());
      for_items(items.count(), item_ns, [&](int64_t i) {
        const int64_t from = items.panel_from(i);
        kernels.multiply({.a = a,
                          .a_step = tiling.num_rows == 1 ? 1 : kPackedStep,
                          .num_rows = tiling.num_rows,
                          .num_tiles = tiling.num_tiles,
                          .tile_from = items.tile_from(i),
                          .tile_to = items.tile_to(i),
                          .depth = depth,
                          .b = params.w_packed + (from * params.k + k) * kPanelWidth,
                          .b_panel_stride = kPanelWidth * params.k,
                          .num_panels = items.panel_to(i) - from,
                          .c = params.y_MN + m * params.y_stride + from * kPanelWidth,
                          .c_row_stride = params.y_stride,
                          .c_panel_stride = kPanelWidth,
                          .accumulate = k > 0,
                          .bias = params.bias_N == nullptr || !is_last
                                      ? nullptr
                                      : params.bias_N + from * kPanelWidth});
      });
    }
  }
}

// The chain runs over n, which is inside the panels: blocks of the weights are transposed into
// panels of 16 inputs, [k / 16][n][16], and the product is the forward's. Blocks over n go in
// order; the accumulator waits in dx.
void gemm_backward_input(const GemmBackwardInputParams& params) {
  check_sizes("gemm_backward_input", params.m, params.n, params.k);
  if (params.m == 0 || params.k == 0) return;
  if (params.n == 0) {
    for (int64_t m = 0; m < params.m && !params.accumulate; ++m) {
      std::fill_n(params.dx_MK + m * params.dx_stride, params.k, 0.0f);
    }
    return;
  }
  const GemmKernels& kernels = gemm_kernels();
  const int64_t num_panels = ceil_div(params.k, kPanelWidth);
  const int64_t most_depth = std::min(kBackwardDepth, params.n);
  const int64_t rows_at_once = block_rows(most_depth, kernels.max_rows);
  for (int64_t m = 0; m < params.m; m += rows_at_once) {
    const Tiling tiling(std::min(rows_at_once, params.m - m), kernels.max_rows);
    const Items items(kernels, tiling, num_panels);
    for (int64_t n = 0; n < params.n; n += most_depth) {
      const int64_t depth = std::min(most_depth, params.n - n);
      const float* a = pack_rows(kernels, tiling, params.dy_MN + m * params.dy_stride + n,
                                 params.dy_stride, depth);
      const double item_ns =
          cost_ns(tiling.num_rows, params.k, depth) / static_cast<double>(items.count());
      for_items(items.count(), item_ns, [&](int64_t i) {
        const int64_t from = items.panel_from(i), to = items.panel_to(i);
        float* w =
            workspace<float>(Slot::kLocal, static_cast<size_t>(items.group * depth * kPanelWidth));
        for (int64_t j = 0; j < depth; j += kPanelWidth) {
          // Inputs of one panel of w stand together, those of the next are K * 64 bytes away: too
          // far for the processor to see it coming.
          const float* source = params.w_packed + (n + j) * params.k + from * 256;
          const float* next = source + kPanelWidth * params.k;
          for (int64_t p = from; p < to; ++p, source += 256, next += 256) {
            for (int line = 0; line < 16; ++line) __builtin_prefetch(next + line * 16);
            kernels.transpose(source, kPanelWidth,
                              std::min(kPanelWidth, params.k - p * kPanelWidth),
                              std::min(kPanelWidth, depth - j),
                              w + ((p - from) * depth + j) * kPanelWidth, kPanelWidth);
          }
        }
        kernels.multiply(
            {.a = a,
             .a_step = kPackedStep,
             .num_rows = tiling.num_rows,
             .num_tiles = tiling.num_tiles,
             .tile_from = items.tile_from(i),
             .tile_to = items.tile_to(i),
             .depth = depth,
             .b = w,
             .b_panel_stride = depth * kPanelWidth,
             .num_panels = to - from,
             .last_width = to == num_panels ? params.k - (to - 1) * kPanelWidth : kPanelWidth,
             .c = params.dx_MK + m * params.dx_stride + from * kPanelWidth,
             .c_row_stride = params.dx_stride,
             .c_panel_stride = kPanelWidth,
             .accumulate = params.accumulate || n > 0});
      });
    }
  }
}

// The chain runs over m: x gives the rows (its K columns in tiles), dy the panels; both are copied
// so that a step of the chain is contiguous. Blocks over m go in order; the accumulator waits in
// dw.
void gemm_backward_weight(const GemmBackwardWeightParams& params) {
  check_sizes("gemm_backward_weight", params.m, params.n, params.k);
  if (params.n == 0 || params.k == 0) return;
  const GemmKernels& kernels = gemm_kernels();
  const int64_t num_panels = ceil_div(params.n, kPanelWidth);
  const Tiling tiling(params.k, kernels.max_rows);
  const Items items(kernels, tiling, num_panels);
  const int64_t most_depth =
      std::clamp<int64_t>(kBlockFloats / (tiling.num_tiles * kPackedStep), 64, 512);
  for (int64_t m = 0; m == 0 || m < params.m; m += most_depth) {
    const int64_t depth = std::min(most_depth, params.m - m);
    float* a = workspace<float>(Slot::kShared,
                                static_cast<size_t>(tiling.num_tiles * depth * kPackedStep));
    for_items(tiling.num_tiles, static_cast<double>(depth) * 1, [&](int64_t t) {
      const int64_t column = tiling.begin(t);
      kernels.copy_columns(params.x_MK + m * params.x_stride + column, params.x_stride,
                           tiling.begin(t + 1) - column, depth, a + t * depth * kPackedStep,
                           kPackedStep);
    });
    const double item_ns = cost_ns(depth, params.n, params.k) / static_cast<double>(items.count());
    for_items(items.count(), item_ns, [&](int64_t i) {
      const int64_t from = items.panel_from(i), to = items.panel_to(i);
      float* b =
          workspace<float>(Slot::kLocal, static_cast<size_t>(items.group * depth * kPanelWidth));
      for (int64_t p = from; p < to; ++p) {
        kernels.copy_columns(params.dy_MN + m * params.dy_stride + p * kPanelWidth,
                             params.dy_stride, std::min(kPanelWidth, params.n - p * kPanelWidth),
                             depth, b + (p - from) * depth * kPanelWidth, kPanelWidth);
      }
      kernels.multiply(
          {.a = a,
           .a_step = kPackedStep,
           .num_rows = tiling.num_rows,
           .num_tiles = tiling.num_tiles,
           .tile_from = items.tile_from(i),
           .tile_to = items.tile_to(i),
           .depth = depth,
           .b = b,
           .b_panel_stride = depth * kPanelWidth,
           .num_panels = to - from,
           .last_width = to == num_panels ? params.n - (to - 1) * kPanelWidth : kPanelWidth,
           .c = params.dw_packed + from * kPanelWidth * params.k,
           .c_row_stride = kPanelWidth,
           .c_panel_stride = kPanelWidth * params.k,
           .accumulate = params.accumulate || m > 0});
    });
  }
}

}  // namespace gradus::kernels
