// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// Causal softmax attention with grouped queries over a paged key-value store, forward and backward,
// fp32. One forward serves decoding, prefill and training: a query row is a function of its own q
// and of the keys and values of positions 0..p of its sequence, by this arithmetic whatever else is
// in the call (docs/numerics.md): keys in blocks of 64 inside chunks of 512, both aligned at
// position 0; scores by one fma chain over the head width, then scaled; online softmax over the
// blocks of a chunk (Milakov and Gimelshein 2018, arXiv:1805.02867); chunks merged in order; values
// by one fma chain over the keys. The backward recomputes the probabilities from the log-sum-exp
// (FlashAttention-2, arXiv:2307.08691).
//
// Letters: T rows, H query heads, G key-value heads (H a multiple of G), K head width.
// No shared state; parallel over common/parallel.h.

inline constexpr int64_t kPageTokens = 64;
inline constexpr int64_t kMaxHeadWidth = 256;

// One page holds the keys and values of 64 consecutive positions of one sequence in one layer:
// keys [G][K][64] (transposed: positions innermost), then values [G][64][padded K]. Pages must be
// zeroed when allocated; what is written later may be overwritten without clearing.
struct KvPageLayout {
  int64_t num_kv_heads = 0;
  int64_t head_width = 0;  // even, <= kMaxHeadWidth
  int64_t padded_width() const { return (head_width + 15) / 16 * 16; }
  int64_t keys_size() const { return num_kv_heads * head_width * kPageTokens; }
  int64_t page_size() const {  // floats; a multiple of 16
    return keys_size() + num_kv_heads * kPageTokens * padded_width();
  }
};

// Consecutive rows of one sequence at consecutive positions.
struct AttentionRun {
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  int64_t first_position = 0;
  const int32_t* page_ids = nullptr;  // page of positions [64 i, 64 i + 64), up to the run's last
};

// Writes the keys and values of a run's rows into its pages.
struct KvWriteParams {
  KvPageLayout layout;
  float* pages = nullptr;        // page i at pages + i * page_size()
  const float* k_TGK = nullptr;  // rows kv_stride apart, head g at + g * K
  const float* v_TGK = nullptr;
  int64_t kv_stride = 0;
  // Pages of different runs must not overlap in what they write.
  const AttentionRun* runs = nullptr;
  int64_t num_runs = 0;
};
void kv_write(const KvWriteParams& params);

struct AttentionForwardParams {
  KvPageLayout layout;
  const float* pages = nullptr;
  const float* q_THK = nullptr;  // rows q_stride apart, head h at + h * K
  int64_t q_stride = 0;
  float* out_THK = nullptr;  // out, rows out_stride apart
  int64_t out_stride = 0;
  float* lse_TH = nullptr;  // out [T, H] log-sum-exp of the scaled scores, or null
  int64_t num_heads = 0;    // H
  float scale = 0;          // 1 / sqrt(K)
  const AttentionRun* runs = nullptr;
  int64_t num_runs = 0;
};
void attention_forward(const AttentionForwardParams& params);

// Where the rows of a sequence's earlier positions are in the same pack: a response's keys are its
// group's prompt rows, then its own.
struct KeyRows {
  int64_t first_position = 0;
  int64_t row_begin = 0;
  int64_t num_rows = 0;
};

struct AttentionBackwardRun {
  AttentionRun run;
  const KeyRows* keys = nullptr;  // cover positions 0 .. last of the run, in order
  int64_t num_keys = 0;           // entries of `keys`
};

struct AttentionBackwardParams {
  KvPageLayout layout;
  const float* pages = nullptr;
  const float* q_THK = nullptr;
  int64_t q_stride = 0;
  const float* out_THK = nullptr;
  const float* dout_THK = nullptr;
  int64_t out_stride = 0;  // of out and dout
  const float* lse_TH = nullptr;
  int64_t num_heads = 0;
  float scale = 0;
  float* dq_THK = nullptr;  // out, rows dq_stride apart
  float* dk_TGK = nullptr;  // in/out: added to, so zero before; rows dq_stride apart
  float* dv_TGK = nullptr;
  int64_t dq_stride = 0;
  // Runs of one group are contiguous and handled in order, so that a shared prompt's gradient is
  // summed in a fixed order; groups share no rows and go in parallel. group_begin has num_groups +
  // 1 entries.
  const AttentionBackwardRun* runs = nullptr;
  const int64_t* group_begin = nullptr;
  int64_t num_groups = 0;
};
void attention_backward(const AttentionBackwardParams& params);

}  // namespace gradus::kernels
