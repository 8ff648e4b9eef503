// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/device_forward_params.h"
#include "kernels/stream.h"

namespace gradus::kernels {

// Parameters of kernels/device_backward.h, as plain data: what the binary hands to
// libgradus_cuda.so. All pointers are to device memory.

// Rows of dy of one norm: bf16 [R, D], or fp32 sums: row r is the sum of dy_f32 rows [begin_R[r],
// begin_R[r + 1]), in order.
struct GradientRows {
  const void* bf16_RD = nullptr;
  const float* f32_ND = nullptr;
  const int32_t* begin_R = nullptr;  // [R + 1], with f32_ND
};

// y = x / rms(x) * weight: adds to dx and to dweight, the latter over rows in a fixed order.
struct DeviceRmsNormBackwardParams {
  const float* x_TD = nullptr;
  const float* weight_D = nullptr;
  const int32_t* rows_R = nullptr;  // rows of x and dx, each once; null: row i
  GradientRows dy;
  int64_t r = 0, d = 0;  // d a multiple of 4, at most kMaxNormBackwardWidth
  float eps = 0;
  float* dx_TD = nullptr;      // added to
  void* rounded_TD = nullptr;  // bf16, the rows of dx afterwards; or null
  float* partial = nullptr;    // norm_backward_partial_floats(d)
  float* dweight_D = nullptr;  // added to
  Stream stream = nullptr;
};
inline constexpr int64_t kMaxNormBackwardWidth = 16384;
inline constexpr int64_t kNormBackwardParts = 1024;
inline int64_t norm_backward_partial_floats(int64_t d) { return kNormBackwardParts * d; }

// A bias' gradient: sum_D += sum over r of dy[r], in a fixed order.
struct DeviceColumnSumsParams {
  const void* dy_RD = nullptr;  // bf16
  int64_t r = 0, d = 0;         // d even
  float* partial = nullptr;     // column_sums_partial_floats(d)
  float* sum_D = nullptr;       // added to
  Stream stream = nullptr;
};
inline constexpr int64_t kColumnSplits = 256;
inline int64_t column_sums_partial_floats(int64_t d) { return kColumnSplits * d; }

// Of inner = silu(gate) * up, columns in blocks of 8 of gate and 8 of up.
struct DeviceSwigluBackwardParams {
  void* gate_up_T = nullptr;  // bf16 [T, 2 F]; becomes its gradient
  void* inner_TF = nullptr;   // bf16 [T, F]: gradient of inner; becomes inner
  int64_t t = 0, f = 0;       // f a multiple of 8
  Stream stream = nullptr;
};

// Norm and rotation of heads, out of the pages: raw q, k and v to q and k as attention takes them.
struct DeviceRotateRowsParams {
  const void* raw_T = nullptr;  // bf16 [T, (H + 2 G) K]
  void* qkv_T = nullptr;        // bf16, the same shape
  int64_t t = 0, num_heads = 0, num_kv_heads = 0, head_width = 0;
  HeadRotation rotation;
  const int32_t* positions_T = nullptr;
  Stream stream = nullptr;
};

// The gradient of the raw heads from that of the rotated ones, in place; v's is left as it is.
struct DeviceRotateBackwardParams {
  const void* raw_T = nullptr;  // bf16 [T, (H + 2 G) K]; read with norms alone
  void* dqkv_T = nullptr;       // bf16, the same shape
  int64_t t = 0, num_heads = 0, num_kv_heads = 0, head_width = 0;
  HeadRotation rotation;
  const int32_t* positions_T = nullptr;
  float* partial = nullptr;    // rotate_backward_partial_floats(K), with norms
  float* dq_norm_K = nullptr;  // added to, with norms
  float* dk_norm_K = nullptr;
  Stream stream = nullptr;
};
inline constexpr int64_t kRotateBackwardWarps = 2048;
inline int64_t rotate_backward_partial_floats(int64_t head_width) {
  return kRotateBackwardWarps * 2 * head_width;
}

// Rows of the embedding that were read: token tokens_N[i] by rows rows_M[begin_N[i] ..
// begin_N[i + 1]), added in order.
struct DeviceEmbedBackwardParams {
  const float* dx_TD = nullptr;
  const int32_t* tokens_N = nullptr;  // each once
  const int32_t* begin_N = nullptr;   // [N + 1]
  const int32_t* rows_M = nullptr;
  int64_t n = 0, d = 0;
  float* dembedding_VD = nullptr;  // added to
  Stream stream = nullptr;
};

// At most 64 consecutive rows of one sequence, for attention's backward. Its own rows are
// [own_begin, own_end), in the order of positions; the other rows of whom it sees all (of queries:
// the prompt that their response follows) or who see all of it (of keys: the responses that follow
// the prompt) are [other_begin, other_end).
struct AttentionBackwardTile {
  int32_t row_begin = 0, num_rows = 0;
  int32_t own_begin = 0, own_end = 0;
  int32_t other_begin = 0, other_end = 0;
};

// Rows past the end of a sequence are read and left out: those of its neighbours must be finite, or
// what is not finite there reaches its gradient.
struct DeviceAttentionBackwardParams {
  const void* qkv_T = nullptr;    // bf16 [T, (H + 2 G) K], q and k rotated; 16-byte aligned
  const void* out_T = nullptr;    // bf16 [T, H K], of the forward; 16-byte aligned
  const void* dout_T = nullptr;   // bf16 [T, H K]; 16-byte aligned
  const float* lse_TH = nullptr;  // DeviceAttentionParams::lse_TH of the forward
  float* delta_TH = nullptr;      // scratch
  void* dqkv_T = nullptr;         // bf16 [T, (H + 2 G) K], written
  int64_t t = 0, num_heads = 0, num_kv_heads = 0, head_width = 0;
  float scale = 0;
  const AttentionBackwardTile* query_tiles = nullptr;
  const AttentionBackwardTile* key_tiles = nullptr;
  int64_t num_query_tiles = 0, num_key_tiles = 0;  // each covers all rows
  Stream stream = nullptr;
};

}  // namespace gradus::kernels
