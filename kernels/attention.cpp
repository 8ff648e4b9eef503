// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "kernels/internal/attention_tasks.h"
#include "kernels/isa.h"

namespace gradus::kernels {
namespace {

PageNumbers page_numbers(const KvPageLayout& layout) {
  GRADUS_CHECK(
      layout.head_width >= 2 && layout.head_width <= kMaxHeadWidth,
      "attention: head_width must be in [2, 256], got " + std::to_string(layout.head_width));
  return {layout.padded_width(), layout.keys_size(), layout.page_size()};
}

// About the work of one query row against this many keys is the least that a thread should take.
constexpr int64_t kGrainScores = 1024;

}  // namespace

void kv_write(const KvWriteParams& params) {
  const PageNumbers numbers = page_numbers(params.layout);
  const int64_t width = params.layout.head_width, num_kv_heads = params.layout.num_kv_heads;
  parallel_for(params.num_runs * num_kv_heads, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const AttentionRun& run = params.runs[task / num_kv_heads];
      const int64_t g = task % num_kv_heads;
      for (int64_t i = 0; i < run.num_rows; ++i) {
        const int64_t position = run.first_position + i, slot = position % kPageTokens;
        float* page = params.pages + run.page_ids[position / kPageTokens] * numbers.page_size;
        const int64_t source = (run.row_begin + i) * params.kv_stride + g * width;
        float* keys = page + g * width * kPageTokens + slot;
        for (int64_t k = 0; k < width; ++k) keys[k * kPageTokens] = params.k_TGK[source + k];
        float* values = page + numbers.keys_size + (g * kPageTokens + slot) * numbers.padded_width;
        std::memcpy(values, params.v_TGK + source, static_cast<size_t>(width) * sizeof(float));
      }
    }
  });
}

void attention_forward(const AttentionForwardParams& params) {
  const PageNumbers numbers = page_numbers(params.layout);
  const int64_t num_kv_heads = params.layout.num_kv_heads;
  const int64_t heads_per_kv = params.num_heads / num_kv_heads;
  GRADUS_CHECK(heads_per_kv * num_kv_heads == params.num_heads,
               "attention: num_heads must be a multiple of num_kv_heads");
  const int64_t tile_rows = std::max<int64_t>(1, kTileQueries / heads_per_kv);
  struct Tile {
    int64_t run, first;
  };
  std::vector<Tile> tiles;
  int64_t scores = 0;
  for (int64_t r = 0; r < params.num_runs; ++r) {
    for (int64_t first = 0; first < params.runs[r].num_rows; first += tile_rows) {
      tiles.push_back({r, first});
      scores += (params.runs[r].first_position + first) * heads_per_kv + 64;
    }
  }
  if (tiles.empty()) return;
  const int64_t num_tiles = static_cast<int64_t>(tiles.size());
  const int64_t grain = std::max<int64_t>(1, kGrainScores * num_tiles / scores);
  const auto forward_tile =
      isa() == Isa::kAvx512 ? avx512::attention_forward_tile : avx2::attention_forward_tile;
  parallel_for(num_tiles * num_kv_heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      // From the longest context down, so that the last tasks handed out are the short ones.
      const Tile& tile = tiles[static_cast<size_t>(num_tiles - 1 - task / num_kv_heads)];
      const AttentionRun& run = params.runs[tile.run];
      forward_tile(params, numbers, run, task % num_kv_heads, tile.first,
                   std::min(run.num_rows, tile.first + tile_rows));
    }
  });
}

void attention_backward(const AttentionBackwardParams& params) {
  const PageNumbers numbers = page_numbers(params.layout);
  const int64_t num_kv_heads = params.layout.num_kv_heads;
  const auto group_task =
      isa() == Isa::kAvx512 ? avx512::attention_backward_group : avx2::attention_backward_group;
  parallel_for(params.num_groups * num_kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      group_task(params, numbers, task / num_kv_heads, task % num_kv_heads);
    }
  });
}

}  // namespace gradus::kernels
