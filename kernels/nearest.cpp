// SPDX-License-Identifier: Apache-2.0
#include "kernels/nearest.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "kernels/gemm.h"
#include "kernels/internal/gemm_kernels.h"
#include "kernels/internal/sampling_kernels.h"
#include "kernels/internal/workspace.h"
#include "kernels/isa.h"

namespace gradus::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Queries at once: packed, they and a block's scores stay in a core's L2.
constexpr int64_t kMostQueries = 256;
// Scores of a block; a block has whole groups of twelve panels, which all register tiles divide.
constexpr int64_t kBlockScores = 1 << 16;
constexpr int64_t kBlockStep = 12 * kPanelWidth;
constexpr int64_t kMostRows = 16 * kBlockStep;

struct Hit {
  float score;
  int64_t id;
};
bool comes_before(const Hit& a, const Hit& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// The best of a query so far, shared by the threads: a heap with the worst on top.
class TopList {
 public:
  void reset(int64_t size) {
    size_ = static_cast<size_t>(size);
    heap_.clear();
    heap_.reserve(size_);
    least_.store(-kInfinity, std::memory_order_relaxed);
  }
  // Scores below it are of no use. It only rises, so an old value lets too many in, never too few.
  float least() const { return least_.load(std::memory_order_relaxed); }
  // Changes the order of `hits`.
  void offer(std::vector<Hit>& hits) {
    if (hits.size() > size_) {
      std::nth_element(hits.begin(), hits.begin() + static_cast<int64_t>(size_), hits.end(),
                       comes_before);
      hits.resize(size_);
    }
    const std::lock_guard lock(mutex_);
    for (const Hit& hit : hits) {
      if (heap_.size() == size_) {
        if (!comes_before(hit, heap_.front())) continue;
        std::pop_heap(heap_.begin(), heap_.end(), comes_before);
        heap_.pop_back();
      }
      heap_.push_back(hit);
      std::push_heap(heap_.begin(), heap_.end(), comes_before);
    }
    if (heap_.size() == size_) least_.store(heap_.front().score, std::memory_order_relaxed);
  }
  void write(float* scores, int64_t* ids) {
    std::sort_heap(heap_.begin(), heap_.end(), comes_before);
    for (size_t i = 0; i < size_; ++i) {
      scores[i] = i < heap_.size() ? heap_[i].score : -kInfinity;
      ids[i] = i < heap_.size() ? heap_[i].id : -1;
    }
  }

 private:
  std::mutex mutex_;
  size_t size_ = 0;
  std::vector<Hit> heap_;
  std::atomic<float> least_{-kInfinity};
};

const GemmKernels& gemm_kernels() {
  return isa() == Isa::kAvx512 ? avx512::gemm_kernels() : avx2::gemm_kernels();
}
const SamplingKernels& scan_kernels() {
  return isa() == Isa::kAvx512 ? avx512::sampling_kernels() : avx2::sampling_kernels();
}

// The queries in register tiles, as GemmBlock wants them.
struct PackedQueries {
  const float* a;
  int64_t step, count, num_tiles;

  PackedQueries(const GemmKernels& kernels, const NearestParams& params, int64_t first, int64_t m)
      : a(params.queries_MK + first * params.queries_stride),
        step(1),
        count(m),
        num_tiles((m + kernels.max_rows - 1) / kernels.max_rows) {
    if (m == 1) return;
    const float* queries = a;
    float* packed =
        workspace<float>(Slot::kShared, static_cast<size_t>(num_tiles * params.k * kPackedStep));
    for (int64_t t = 0; t < num_tiles; ++t) {
      const int64_t begin = tile_begin(m, num_tiles, t);
      kernels.transpose(queries + begin * params.queries_stride, params.queries_stride,
                        tile_begin(m, num_tiles, t + 1) - begin, params.k,
                        packed + t * params.k * kPackedStep, kPackedStep);
    }
    a = packed;
    step = kPackedStep;
  }
};

void search_rows(const NearestParams& params, const PackedQueries& queries, int64_t begin,
                 int64_t end, std::vector<TopList>& lists) {
  const int64_t stride = padded(end - begin);
  float* scores = workspace<float>(Slot::kLocal, static_cast<size_t>(queries.count * stride));
  gemm_kernels().multiply({.a = queries.a,
                           .a_step = queries.step,
                           .num_rows = queries.count,
                           .num_tiles = queries.num_tiles,
                           .tile_from = 0,
                           .tile_to = queries.num_tiles,
                           .depth = params.k,
                           .b = params.rows_packed + begin * params.k,
                           .b_panel_stride = kPanelWidth * params.k,
                           .num_panels = stride / kPanelWidth,
                           .c = scores,
                           .c_row_stride = stride,
                           .c_panel_stride = kPanelWidth});
  int32_t found[kMostRows];
  std::vector<Hit> hits;
  for (int64_t q = 0; q < queries.count; ++q) {
    const float* row = scores + q * stride;
    const int64_t count = scan_kernels().collect(row, end - begin, lists[q].least(), found);
    if (count == 0) continue;
    hits.clear();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = begin + found[i];
      hits.push_back({row[found[i]], params.ids_N == nullptr ? place : params.ids_N[place]});
    }
    lists[q].offer(hits);
  }
}

}  // namespace

void nearest_rows(const NearestParams& params) {
  GRADUS_CHECK(params.m >= 0 && params.n >= 0 && params.k >= 1 && params.top >= 1,
               "nearest_rows: sizes");
  std::vector<TopList> lists(static_cast<size_t>(std::min(params.m, kMostQueries)));
  for (int64_t first = 0; first < params.m; first += kMostQueries) {
    const int64_t m = std::min(kMostQueries, params.m - first);
    for (int64_t q = 0; q < m; ++q) lists[q].reset(params.top);
    const PackedQueries queries(gemm_kernels(), params, first, m);
    const int64_t block =
        std::clamp(kBlockScores / m / kBlockStep * kBlockStep, kBlockStep, kMostRows);
    parallel_for((params.n + block - 1) / block, 1, [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b) {
        search_rows(params, queries, b * block, std::min(params.n, (b + 1) * block), lists);
      }
    });
    for (int64_t q = 0; q < m; ++q) {
      lists[q].write(params.scores_MT + (first + q) * params.top,
                     params.ids_MT + (first + q) * params.top);
    }
  }
}

}  // namespace gradus::kernels
