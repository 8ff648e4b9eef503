// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/stream.h"

namespace gradus::kernels {

// Parameters of kernels/lm_head.h, as plain data: what the binary hands to libgradus_cuda.so.

// How one row is sampled; lives in device memory.
struct LmHeadRow {
  double top_p = 1;       // in (0, 1]; 1 = off
  double min_p = 0;       // in [0, 1]; 0 = off
  uint64_t seed = 0;      // of the request
  float temperature = 1;  // in [1e-4, 1e4]; 0 = greedy, where filters and noise are not used
  uint32_t position = 0;  // of the token that is drawn
  int32_t top_k = 0;      // >= 0; 0 = off
  int32_t reserved = 0;
};

inline constexpr int kLmHeadMaxRows = 4096;  // of one call
inline constexpr int kLmHeadMaxTop = 20;

struct LmHeadSampleParams {
  const void* w_VD = nullptr;         // [V, D] bf16, 16-byte aligned; a shard: its rows alone
  const void* h_BD = nullptr;         // [B, D] bf16, 16-byte aligned
  const LmHeadRow* rows_B = nullptr;  // [B]
  int64_t b = 0;                      // in [1, kLmHeadMaxRows]
  int64_t v = 0;                      // rows of w_VD, >= 1
  int64_t d = 0;                      // >= 8, a multiple of 8
  // Of a shard: where it begins in the whole vocabulary, a multiple of 128, and the whole size, at
  // most 2^23. All shards in increasing order with one workspace; results come with the last.
  int64_t vocab_begin = 0;
  int64_t vocab_size = 0;  // 0 = v
  bool filters = true;     // false promises that no row has filters; saves a rendezvous

  // Results in device memory; null = not wanted, except the first two.
  int32_t* token_B = nullptr;           // -1 if a logit is NaN or +inf or none is finite
  float* logprob_B = nullptr;           // log softmax(z / T) of the token, before filters
  float* sampling_logprob_B = nullptr;  // the same after filters; 0 when greedy
  float* lse_B = nullptr;               // log sum exp(z / T)
  float* entropy_B = nullptr;           // of softmax(z / T), nats
  int32_t* num_kept_B = nullptr;        // tokens that the filters left; V without filters
  int64_t num_top = 0;                  // likeliest tokens wanted, <= kLmHeadMaxTop; needs filters
  int32_t* top_ids_BN = nullptr;        // [B, num_top], likeliest first
  float* top_logprobs_BN = nullptr;     // [B, num_top], before filters

  void* workspace = nullptr;  // lm_head_sample_workspace_bytes, zeroed once, 256-byte aligned
  size_t workspace_bytes = 0;
  int64_t workspace_rows = 0;  // for so many rows it was made, >= b; 0 = b
  Stream stream = nullptr;
};

// Log-probabilities of given tokens, bit for bit those that lm_head_sample gives for the same row,
// weights, temperature and token (greedy: temperature 1).
struct LmHeadScoreParams {
  const void* w_VD = nullptr;            // [V, D] bf16, 16-byte aligned
  const void* h_BD = nullptr;            // [B, D] bf16, 16-byte aligned
  const float* temperature_B = nullptr;  // [B], each in [1e-4, 1e4]
  const int32_t* token_B = nullptr;      // [B], each in [0, V)
  int64_t b = 0;                         // >= 0
  int64_t v = 0, d = 0;                  // as above
  float* logprob_B = nullptr;            // results; null = not wanted, except the first
  float* lse_B = nullptr;
  float* entropy_B = nullptr;
  void* workspace = nullptr;  // lm_head_score_workspace_bytes, zeroed once, 256-byte aligned
  size_t workspace_bytes = 0;
  Stream stream = nullptr;
};

// Gradients of a loss by its gradients with respect to each row's log-probability and entropy:
//   dz_j = (dlogprob (1{j = token} - p_j) - dentropy p_j (log p_j + entropy)) / T,  p = softmax(z /
//   T)
// and from there dh = dz W, dw += dz^T h.
struct LmHeadBackwardParams {
  const void* w_VD = nullptr;         // [V, D] bf16, 16-byte aligned
  const void* h_BD = nullptr;         // [B, D] bf16, 16-byte aligned
  const int32_t* token_B = nullptr;   // [B], each in [0, V)
  const float* lse_B = nullptr;       // [B], the scorer's
  const float* entropy_B = nullptr;   // [B], the scorer's; null if dentropy_B is
  const float* dlogprob_B = nullptr;  // [B]
  const float* dentropy_B = nullptr;  // [B]; null = 0
  float temperature = 1;              // of all rows, in [1e-4, 1e4], the scorer's
  int64_t b = 0;                      // >= 0
  int64_t v = 0, d = 0;               // as above
  // Rows whose gradients are not zero, each in [0, B) and once: the others cost nothing but a fill
  // of their dh. Null = all.
  const int32_t* rows_R = nullptr;
  int64_t r = 0;              // of rows_R
  float* dh_BD = nullptr;     // [B, D], overwritten, 16-byte aligned
  float* dw_VD = nullptr;     // [V, D], added to, 16-byte aligned; null = not wanted
  void* workspace = nullptr;  // lm_head_backward_workspace_bytes, 256-byte aligned
  size_t workspace_bytes = 0;
  Stream stream = nullptr;
};

// Scores and gradients in one go, where the loss' gradients are known in advance, as in supervised
// training: what the scorer gives, and the above without an entropy's part.
struct LmHeadTrainParams {
  const void* w_VD = nullptr;         // [V, D] bf16, 16-byte aligned
  const void* h_BD = nullptr;         // [B, D] bf16, 16-byte aligned
  const int32_t* token_B = nullptr;   // [B], each in [0, V)
  const float* dlogprob_B = nullptr;  // [B]
  float temperature = 1;              // of all rows, in [1e-4, 1e4]
  int64_t b = 0;                      // >= 0
  int64_t v = 0, d = 0;               // as above
  float* logprob_B = nullptr;         // [B], the scorer's bits
  float* lse_B = nullptr;             // null = not wanted
  float* entropy_B = nullptr;         // null = not wanted
  float* dh_BD = nullptr;             // [B, D], overwritten, 16-byte aligned
  float* dw_VD = nullptr;             // [V, D], added to, 16-byte aligned; null = not wanted
  void* workspace = nullptr;          // lm_head_train_workspace_bytes, 256-byte aligned
  size_t workspace_bytes = 0;
  Stream stream = nullptr;
};

}  // namespace gradus::kernels
