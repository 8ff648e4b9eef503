// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "kernels/internal/attention_tasks.h"
#include "kernels/internal/vec.h"

namespace gradus::kernels::GRADUS_ISA {
namespace {

constexpr int64_t kBlock = 64;   // keys per block: one page
constexpr int64_t kChunk = 512;  // keys per online softmax
constexpr float kMinusInfinity = -__builtin_inff();

// Vectors of 16 that one pass of a register tile spans: as many as six rows of accumulators leave
// room for.
#if defined(GRADUS_ISA_avx512)
constexpr int kSpan = 4;
#else
constexpr int kSpan = 1;
#endif

// A compile-time count passed as a value.
template <int N>
struct Count {
  static constexpr int kValue = N;
};

// s[q][j] = fma-chain over k < width of a[q][k] b[k][j], j < 64; b rows 64 apart.
template <int Q>
void products(const float* const* a, const float* b, int64_t width, float* s) {
  for (int64_t j = 0; j < kBlock; j += kSpan * kLanes) {
    F32x16 sums[Q][kSpan];
    for (int q = 0; q < Q; ++q) {
      for (int v = 0; v < kSpan; ++v) sums[q][v] = zeros();
    }
    for (int64_t k = 0; k < width; ++k) {
      F32x16 row[kSpan];
      for (int v = 0; v < kSpan; ++v) row[v] = load(b + k * kBlock + j + v * kLanes);
      for (int q = 0; q < Q; ++q) {
        const F32x16 factor = broadcast(a[q][k]);
        for (int v = 0; v < kSpan; ++v) sums[q][v] = fma(factor, row[v], sums[q][v]);
      }
    }
    for (int q = 0; q < Q; ++q) {
      for (int v = 0; v < kSpan; ++v) store(s + q * kBlock + j + v * kLanes, sums[q][v]);
    }
  }
}

// o[q][i] = o[q][i] alpha[q], then an fma-chain over j < count of p[q][j] b[j][i]; i < padded, rows
// of o and b `padded` apart.
template <int Q>
void accumulate(const float* p, const float* b, int64_t count, const float* alpha, int64_t padded,
                float* const* o) {
  int64_t i = 0;
  const auto pass = [&](auto span) {
    constexpr int kWidth = decltype(span)::kValue;
    F32x16 sums[Q][kWidth];
    for (int q = 0; q < Q; ++q) {
      for (int v = 0; v < kWidth; ++v) {
        // + 0 turns a -0 that the scaling may leave into +0, as a further key would.
        sums[q][v] = fma(load(o[q] + i + v * kLanes), broadcast(alpha[q]), zeros());
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      F32x16 row[kWidth];
      for (int v = 0; v < kWidth; ++v) row[v] = load(b + j * padded + i + v * kLanes);
      for (int q = 0; q < Q; ++q) {
        const F32x16 factor = broadcast(p[q * kBlock + j]);
        for (int v = 0; v < kWidth; ++v) sums[q][v] = fma(factor, row[v], sums[q][v]);
      }
    }
    for (int q = 0; q < Q; ++q) {
      for (int v = 0; v < kWidth; ++v) store(o[q] + i + v * kLanes, sums[q][v]);
    }
    i += kWidth * kLanes;
  };
  while (i + kSpan * kLanes <= padded) pass(Count<kSpan>{});
  while (i < padded) pass(Count<1>{});
}

// c[j][i] += fma-chain over q of s[q][j] a[q][i], j < count, i < padded.
template <int Q>
void outer_products(const float* s, const float* const* a, int64_t count, int64_t padded,
                    float* c) {
  for (int64_t i = 0; i < padded; i += kLanes) {
    F32x16 rows[Q];
    for (int q = 0; q < Q; ++q) rows[q] = load(a[q] + i);
    for (int64_t j = 0; j < count; ++j) {
      F32x16 sum = load(c + j * padded + i);
      for (int q = 0; q < Q; ++q) sum = fma(broadcast(s[q * kBlock + j]), rows[q], sum);
      store(c + j * padded + i, sum);
    }
  }
}

// Runs `body` with a compile-time number of queries, 1 to 6.
template <class Body>
void with_count(int count, const Body& body) {
  switch (count) {
    case 1:
      return body(Count<1>{});
    case 2:
      return body(Count<2>{});
    case 3:
      return body(Count<3>{});
    case 4:
      return body(Count<4>{});
    case 5:
      return body(Count<5>{});
    default:
      return body(Count<6>{});
  }
}

// Keys of a block that each query of a tile sees, at most 64.
struct Visible {
  int64_t count[kTileQueries];
  int64_t all = kBlock;  // that every query sees

  void set(int q, int64_t num_keys) {
    count[q] = num_keys < 0 ? 0 : num_keys < kBlock ? num_keys : kBlock;
    all = count[q] < all ? count[q] : all;
  }
};

// accumulate() over the keys that each query sees. What is masked is not multiplied by 0 but left
// out, so that a NaN there stays there; for finite numbers the bits are the same.
void accumulate_visible(int num_queries, const float* p, const float* b, const Visible& visible,
                        const float* alpha, int64_t padded, float* const* o) {
  with_count(num_queries,
             [&](auto n) { accumulate<decltype(n)::kValue>(p, b, visible.all, alpha, padded, o); });
  const float one = 1;
  for (int q = 0; q < num_queries; ++q) {
    const int64_t left = visible.count[q] - visible.all;
    if (left == 0) continue;
    accumulate<1>(p + q * kBlock + visible.all, b + visible.all * padded, left, &one, padded,
                  o + q);
  }
}

// outer_products() likewise: a key gets nothing of queries that do not see it.
void outer_products_visible(int num_queries, const float* s, const float* const* a,
                            const Visible& visible, int64_t padded, float* c) {
  with_count(num_queries,
             [&](auto n) { outer_products<decltype(n)::kValue>(s, a, visible.all, padded, c); });
  for (int q = 0; q < num_queries; ++q) {
    const int64_t left = visible.count[q] - visible.all;
    if (left == 0) continue;
    outer_products<1>(s + q * kBlock + visible.all, a + q, left, padded, c + visible.all * padded);
  }
}

// One query of one head with the state of its online softmax.
struct Query {
  int64_t row, head, position;
  float max, sum;              // of the current chunk
  float total_max, total_sum;  // of the chunks before
};

void forward_queries(const AttentionForwardParams& params, const PageNumbers& numbers,
                     const AttentionRun& run, int64_t g, Query* queries, int count) {
  const int64_t width = params.layout.head_width, padded = numbers.padded_width;
  alignas(64) float scores[kTileQueries * kBlock];
  alignas(64) float chunk_out[kTileQueries][kMaxHeadWidth];
  alignas(64) float total_out[kTileQueries][kMaxHeadWidth];
  const float* q_rows[kTileQueries];
  float* chunk_rows[kTileQueries];
  float alpha[kTileQueries];
  int64_t last_position = 0;
  for (int q = 0; q < count; ++q) {
    Query& query = queries[q];
    q_rows[q] = params.q_THK + query.row * params.q_stride + query.head * width;
    chunk_rows[q] = chunk_out[q];
    query.total_max = kMinusInfinity;
    query.total_sum = 0;
    for (int64_t i = 0; i < padded; ++i) total_out[q][i] = 0;
    last_position = query.position > last_position ? query.position : last_position;
  }
  for (int64_t chunk = 0; chunk <= last_position; chunk += kChunk) {
    for (int q = 0; q < count; ++q) {
      queries[q].max = kMinusInfinity;
      queries[q].sum = 0;
      for (int64_t i = 0; i < padded; ++i) chunk_out[q][i] = 0;
    }
    for (int64_t block = chunk; block < chunk + kChunk && block <= last_position; block += kBlock) {
      const float* page = params.pages + run.page_ids[block / kBlock] * numbers.page_size;
      const float* keys = page + g * width * kBlock;
      const float* values = page + numbers.keys_size + g * kBlock * padded;
      with_count(count,
                 [&](auto n) { products<decltype(n)::kValue>(q_rows, keys, width, scores); });
      Visible visible;
      for (int q = 0; q < count; ++q) {
        Query& query = queries[q];
        float* s = scores + q * kBlock;
        const int64_t valid = query.position + 1 - block;
        visible.set(q, valid);
        if (valid <= 0) {  // none of this block is visible: the state stays as it is
          alpha[q] = 1;
          continue;
        }
        F32x16 scaled[kBlock / kLanes];
        F32x16 largest = broadcast(kMinusInfinity);
        for (int v = 0; v < kBlock / kLanes; ++v) {
          const int64_t left = valid - v * kLanes;
          const int n = left < 0 ? 0 : left < kLanes ? static_cast<int>(left) : kLanes;
          scaled[v] = select(first_lanes(n), load(s + v * kLanes) * broadcast(params.scale),
                             broadcast(kMinusInfinity));
          largest = max(largest, scaled[v]);
        }
        const float block_max = max_lane(largest);
        const float new_max = query.max < block_max ? block_max : query.max;
        alpha[q] = exp(query.max - new_max);
        F32x16 sums = zeros();
        for (int v = 0; v < kBlock / kLanes; ++v) {
          const F32x16 p = exp(scaled[v] - broadcast(new_max));
          store(s + v * kLanes, p);
          sums = sums + p;
        }
        query.sum = __builtin_fmaf(query.sum, alpha[q], sum_lanes(sums));
        query.max = new_max;
      }
      accumulate_visible(count, scores, values, visible, alpha, padded, chunk_rows);
    }
    for (int q = 0; q < count; ++q) {
      Query& query = queries[q];
      if (query.position < chunk) continue;
      const float new_max = query.total_max < query.max ? query.max : query.total_max;
      const float before = exp(query.total_max - new_max), now = exp(query.max - new_max);
      query.total_sum = __builtin_fmaf(query.total_sum, before, query.sum * now);
      query.total_max = new_max;
      for (int64_t i = 0; i < padded; i += kLanes) {
        store(total_out[q] + i, fma(load(total_out[q] + i), broadcast(before),
                                    load(chunk_out[q] + i) * broadcast(now)));
      }
    }
  }
  for (int q = 0; q < count; ++q) {
    const Query& query = queries[q];
    float* out = params.out_THK + query.row * params.out_stride + query.head * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int n = width - i < kLanes ? static_cast<int>(width - i) : kLanes;
      store_first(out + i, load(total_out[q] + i) / broadcast(query.total_sum), n);
    }
    if (params.lse_TH != nullptr) {
      params.lse_TH[query.row * params.num_heads + query.head] =
          query.total_max + log(query.total_sum);
    }
  }
}

}  // namespace

void attention_forward_tile(const AttentionForwardParams& params, const PageNumbers& numbers,
                            const AttentionRun& run, int64_t g, int64_t row_first,
                            int64_t row_last) {
  const int64_t heads_per_kv = params.num_heads / params.layout.num_kv_heads;
  Query queries[kTileQueries];
  int count = 0;
  for (int64_t i = row_first; i < row_last; ++i) {
    for (int64_t h = 0; h < heads_per_kv; ++h) {
      queries[count++] = {
          run.row_begin + i, g * heads_per_kv + h, run.first_position + i, 0, 0, 0, 0};
      if (count == kTileQueries) {
        forward_queries(params, numbers, run, g, queries, count);
        count = 0;
      }
    }
  }
  if (count > 0) forward_queries(params, numbers, run, g, queries, count);
}

namespace {

// Scratch of one (group, key-value head) of the backward; large, so it lives on the heap of the
// thread.
struct BackwardScratch {
  alignas(64) float keys[kBlock * kMaxHeadWidth];               // [64][padded]
  alignas(64) float values_transposed[kMaxHeadWidth * kBlock];  // [K][64]
  alignas(64) float dkeys[kBlock * kMaxHeadWidth];              // [64][padded]
  alignas(64) float dvalues[kBlock * kMaxHeadWidth];
  alignas(64) float q[kTileQueries][kMaxHeadWidth];  // padded copies of the tile's rows
  alignas(64) float dout[kTileQueries][kMaxHeadWidth];
  alignas(64) float dq[kTileQueries][kMaxHeadWidth];
  alignas(64) float p[kTileQueries * kBlock];
  alignas(64) float ds[kTileQueries * kBlock];
};

void copy_padded(const float* from, int64_t width, int64_t padded, float* to) {
  for (int64_t i = 0; i < padded; ++i) to[i] = i < width ? from[i] : 0.0f;
}

float dot(const float* a, const float* b, int64_t width) {
  F32x16 sums = zeros();
  for (int64_t i = 0; i < width; i += kLanes) {
    const int n = width - i < kLanes ? static_cast<int>(width - i) : kLanes;
    sums = fma(load_first(a + i, n), load_first(b + i, n), sums);
  }
  return sum_lanes(sums);
}

// One tile of queries against one block of keys: dq in memory, dkeys and dvalues in scratch.
void backward_tile(const AttentionBackwardParams& params, int64_t padded, const float* block_keys,
                   int64_t block, const Query* queries, int count, BackwardScratch& scratch) {
  const int64_t width = params.layout.head_width;
  const float *q_rows[kTileQueries], *dout_rows[kTileQueries];
  float* dq_rows[kTileQueries];
  float ones[kTileQueries];
  Visible visible;
  for (int q = 0; q < count; ++q) {
    const int64_t head_offset = queries[q].head * width;
    copy_padded(params.q_THK + queries[q].row * params.q_stride + head_offset, width, padded,
                scratch.q[q]);
    copy_padded(params.dout_THK + queries[q].row * params.out_stride + head_offset, width, padded,
                scratch.dout[q]);
    copy_padded(params.dq_THK + queries[q].row * params.dq_stride + head_offset, width, padded,
                scratch.dq[q]);
    q_rows[q] = scratch.q[q];
    dout_rows[q] = scratch.dout[q];
    dq_rows[q] = scratch.dq[q];
    ones[q] = 1;
    visible.set(q, queries[q].position + 1 - block);
  }
  with_count(count, [&](auto n) {
    constexpr int kCount = decltype(n)::kValue;
    products<kCount>(q_rows, block_keys, width, scratch.p);
    products<kCount>(dout_rows, scratch.values_transposed, width, scratch.ds);
  });
  for (int q = 0; q < count; ++q) {
    const int64_t valid = queries[q].position + 1 - block;
    float* p = scratch.p + q * kBlock;
    float* ds = scratch.ds + q * kBlock;
    for (int v = 0; v < kBlock / kLanes; ++v) {
      const int64_t left = valid - v * kLanes;
      const int n = left < 0 ? 0 : left < kLanes ? static_cast<int>(left) : kLanes;
      const F32x16 scaled = load(p + v * kLanes) * broadcast(params.scale);
      const F32x16 probability =
          select(first_lanes(n), exp(scaled - broadcast(queries[q].max)), zeros());
      // queries[q].sum holds the row's dout . out here (the D of FlashAttention-2).
      const F32x16 slope = probability * (load(ds + v * kLanes) - broadcast(queries[q].sum));
      store(p + v * kLanes, probability);
      store(ds + v * kLanes, select(first_lanes(n), slope * broadcast(params.scale), zeros()));
    }
  }
  outer_products_visible(count, scratch.p, dout_rows, visible, padded, scratch.dvalues);
  outer_products_visible(count, scratch.ds, q_rows, visible, padded, scratch.dkeys);
  accumulate_visible(count, scratch.ds, scratch.keys, visible, ones, padded, dq_rows);
  for (int q = 0; q < count; ++q) {
    float* dq = params.dq_THK + queries[q].row * params.dq_stride + queries[q].head * width;
    for (int64_t i = 0; i < width; ++i) dq[i] = scratch.dq[q][i];
  }
}

void add_rows(const AttentionBackwardRun& run, int64_t block, int64_t num_keys, int64_t g,
              int64_t width, int64_t padded, int64_t stride, const float* from, float* to) {
  for (int64_t entry = 0; entry < run.num_keys; ++entry) {
    const KeyRows& keys = run.keys[entry];
    for (int64_t j = 0; j < num_keys; ++j) {
      const int64_t index = block + j - keys.first_position;
      if (index < 0 || index >= keys.num_rows) continue;
      float* row = to + (keys.row_begin + index) * stride + g * width;
      for (int64_t i = 0; i < width; i += kLanes) {
        const int n = width - i < kLanes ? static_cast<int>(width - i) : kLanes;
        store_first(row + i, load_first(row + i, n) + load_first(from + j * padded + i, n), n);
      }
    }
  }
}

void backward_run(const AttentionBackwardParams& params, const PageNumbers& numbers,
                  const AttentionBackwardRun& backward_run, int64_t g, BackwardScratch& scratch) {
  const AttentionRun& run = backward_run.run;
  const int64_t width = params.layout.head_width, padded = numbers.padded_width;
  const int64_t heads_per_kv = params.num_heads / params.layout.num_kv_heads;
  for (int64_t i = 0; i < run.num_rows; ++i) {
    float* dq = params.dq_THK + (run.row_begin + i) * params.dq_stride + g * heads_per_kv * width;
    for (int64_t k = 0; k < heads_per_kv * width; ++k) dq[k] = 0;
  }
  const int64_t last_position = run.first_position + run.num_rows - 1;
  for (int64_t block = 0; block <= last_position; block += kBlock) {
    const float* page = params.pages + run.page_ids[block / kBlock] * numbers.page_size;
    const float* keys = page + g * width * kBlock;
    const float* values = page + numbers.keys_size + g * kBlock * padded;
    for (int64_t k = 0; k < width; ++k) {
      for (int64_t j = 0; j < kBlock; ++j) {
        scratch.values_transposed[k * kBlock + j] = values[j * padded + k];
        scratch.keys[j * padded + k] = keys[k * kBlock + j];
      }
    }
    for (int64_t j = 0; j < kBlock; ++j) {
      for (int64_t k = width; k < padded; ++k) scratch.keys[j * padded + k] = 0;
    }
    for (int64_t i = 0; i < kBlock * padded; i += kLanes) {
      store(scratch.dkeys + i, zeros());
      store(scratch.dvalues + i, zeros());
    }
    Query queries[kTileQueries];
    int count = 0;
    const int64_t first = block > run.first_position ? block - run.first_position : 0;
    for (int64_t i = first; i < run.num_rows; ++i) {
      for (int64_t h = 0; h < heads_per_kv; ++h) {
        const int64_t row = run.row_begin + i, head = g * heads_per_kv + h;
        const float* out = params.out_THK + row * params.out_stride + head * width;
        const float* dout = params.dout_THK + row * params.out_stride + head * width;
        queries[count++] = {row,
                            head,
                            run.first_position + i,
                            params.lse_TH[row * params.num_heads + head],
                            dot(dout, out, width),
                            0,
                            0};
        if (count == kTileQueries) {
          backward_tile(params, padded, keys, block, queries, count, scratch);
          count = 0;
        }
      }
    }
    if (count > 0) backward_tile(params, padded, keys, block, queries, count, scratch);
    const int64_t visible = last_position + 1 - block;
    const int64_t num_keys = visible < kBlock ? visible : kBlock;
    add_rows(backward_run, block, num_keys, g, width, padded, params.dq_stride, scratch.dkeys,
             params.dk_TGK);
    add_rows(backward_run, block, num_keys, g, width, padded, params.dq_stride, scratch.dvalues,
             params.dv_TGK);
  }
}

}  // namespace

void attention_backward_group(const AttentionBackwardParams& params, const PageNumbers& numbers,
                              int64_t group, int64_t g) {
  // On the heap of the threads that come here: as a variable its 283 KB, once for each instruction
  // set, were part of every thread of the process and made resident when it started.
  static thread_local const auto owned = std::make_unique<BackwardScratch>();
  BackwardScratch& scratch = *owned;
  for (int64_t r = params.group_begin[group]; r < params.group_begin[group + 1]; ++r) {
    backward_run(params, numbers, params.runs[r], g, scratch);
  }
}

}  // namespace gradus::kernels::GRADUS_ISA
