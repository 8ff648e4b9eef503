// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/lm_head_params.h"
#include "kernels/stream.h"

namespace gradus::kernels {

// Parameters of kernels/device_forward.h, as plain data: what the binary hands to
// libgradus_cuda.so. All pointers are to device memory.

inline constexpr int64_t kDevicePageTokens = 64;    // positions of a page
inline constexpr int64_t kDeviceChunkTokens = 512;  // keys that are summed before sums are merged
inline constexpr int64_t kDeviceMaxHeadsPerGroup = 16;

// What becomes of a product.
enum class LinearOutput : int32_t {
  kStore = 0,  // y = product, bf16
  kAdd = 1,    // y = addend + product, fp32
  kSwiglu =
      2,  // y = silu(gate) * up, bf16 [T, N / 2]; w's rows: 8 of gate, 8 of up, 8 of gate, ...
};

// y[t, n] = sum_k x[t, k] w[n, k] + bias[n], one chain over increasing k in fp32.
struct LinearParams {
  const void* x_TK = nullptr;     // bf16, rows K apart, 16-byte aligned
  const void* w_NK = nullptr;     // bf16, rows K apart, 16-byte aligned
  const float* bias_N = nullptr;  // or null
  int64_t t = 0;                  // >= 1
  int64_t n = 0;                  // a multiple of 8; of 16 with kSwiglu
  int64_t k = 0;                  // a multiple of 8
  void* y = nullptr;              // rows y_stride elements apart, 16-byte aligned
  int64_t y_stride = 0;           // even
  LinearOutput output = LinearOutput::kStore;
  const float* addend_TN = nullptr;  // of kAdd, rows y_stride apart; null: y
  void* kept_TN = nullptr;  // of kSwiglu, for the backward: the product too, bf16, rows N apart
  // For tests: the tile, 64 `force_groups` rows by `force_features` columns, 4 groups being those
  // of two neighbours; 0 = chosen by the shape.
  int32_t force_groups = 0, force_features = 0;
  Stream stream = nullptr;
};

struct DeviceEmbedParams {
  const void* embedding_VD = nullptr;  // bf16
  const int32_t* tokens_T = nullptr;   // in [0, V), or negative: row of token 0
  int64_t t = 0, d = 0;                // d a multiple of 8
  float* x_TD = nullptr;
  Stream stream = nullptr;
};

// y[i] = x[rows[i]] / rms(x[rows[i]]) * weight, rounded to bf16 once.
struct DeviceRmsNormParams {
  const float* x_TD = nullptr;
  const float* weight_D = nullptr;
  const int32_t* rows_R = nullptr;  // null: row i
  int64_t r = 0, d = 0;             // d a multiple of 4
  float eps = 0;
  void* y_RD = nullptr;  // bf16
  Stream stream = nullptr;
};

// Keys and values of one layer in pages of 64 positions, bf16: page p holds keys [G, 64, K], then
// values [G, 64, K]. The 16-byte parts of position i are in the order part ^ (i % 8), which is how
// they are read. All pages must be finite numbers from the beginning.
struct DeviceKv {
  void* pages = nullptr;
  const int32_t* tables = nullptr;  // [rows of tables, table_stride]: page of positions 64 i ...
  int64_t table_stride = 0;
  int64_t num_kv_heads = 0;  // G
  int64_t head_width = 0;    // K: 64 or 128
  int64_t page_size() const { return 2 * num_kv_heads * kDevicePageTokens * head_width; }
};

// Norm (if weights are given) and rotation of each head of q and k.
struct HeadRotation {
  const float* q_norm_K = nullptr;  // or null
  const float* k_norm_K = nullptr;  // or null
  float eps = 0;
  const float* cosines = nullptr;  // [positions, K / 2]
  const float* sines = nullptr;
};

// Rotates q in place and writes k, rotated, and v to the pages.
struct DeviceRotateParams {
  void* qkv_T = nullptr;  // bf16 [T, (H + 2 G) K]
  int64_t t = 0;
  int64_t num_heads = 0;  // H
  HeadRotation rotation;
  const int32_t* positions_T = nullptr;
  const int32_t* table_rows_T = nullptr;  // row of kv.tables of each row
  DeviceKv kv;
  Stream stream = nullptr;
};

// Consecutive rows of one sequence, at most 64, that a block of threads attends for.
struct AttentionTile {
  int32_t row_begin = 0, num_rows = 0, first_position = 0, table_row = 0;
};

// What chunks of keys say before they are merged, of t decoding rows.
inline int64_t attention_partial_floats(int64_t t, int64_t num_heads, int64_t head_width,
                                        int64_t max_chunks) {
  return t * num_heads * max_chunks * (head_width + 2);
}

// Causal attention of rows over their sequence's pages, by this arithmetic whatever else is in the
// call: blocks of 64 keys each by themselves (largest, exponentials, sum, weighted values), merged
// in order inside chunks of 512 keys, chunks merged in order; blocks and chunks begin at position
// 0.
struct DeviceAttentionParams {
  const void* qkv_T = nullptr;  // bf16 [T, (H + 2 G) K]
  void* out_T = nullptr;        // bf16 [T, H K]
  int64_t num_heads = 0;        // H, at most 16 G
  float scale = 0;              // 1 / sqrt(K)
  DeviceKv kv;
  // Either decoding: row t alone of the sequence of table row t, at positions[t] (negative: left
  // out, out = 0). Rotates q and k by itself and writes k and v to the pages. Positions, tables and
  // earlier keys and values are read before the kernel before this one on the stream has ended: it
  // must not be the one that writes them.
  HeadRotation rotation;
  const int32_t* positions_T = nullptr;
  int64_t t = 0;
  int64_t max_chunks = 0;        // no sequence has more chunks
  uint32_t* arrivals = nullptr;  // [T, G], zeroed once; unused with one chunk, like the next
  float* partial = nullptr;      // attention_partial_floats()
  // Or tiles of many rows, whose qkv device_rotate has been through.
  const AttentionTile* tiles = nullptr;
  int64_t num_tiles = 0;
  // With tiles, for the backward: log2 of the sum of 2^(score scale log2 e); or null.
  float* lse_TH = nullptr;
  Stream stream = nullptr;
};

// A sequence that begins to decode, or moves: what a place of the batch is told.
struct SlotStart {
  int32_t slot = 0;
  int32_t token = 0;     // index in `tokens_from`, or -1: take the state of slot `from`
  int32_t position = 0;  // of the token; negative: the place becomes empty
  int32_t from = 0;
  LmHeadRow row;  // how the next token is drawn
};

// State of the batch's places, one step further or changed from outside.
struct SlotState {
  int32_t* tokens = nullptr;     // [slots] token whose keys and values come next
  int32_t* positions = nullptr;  // [slots] its position; -1: the place is empty
  LmHeadRow* rows = nullptr;     // [slots] of the token that is drawn
};

struct PageCopy {
  int32_t from = 0, to = 0;
};

}  // namespace gradus::kernels
