// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/status.h"
#include "kernels/cuda.h"
#include "kernels/lm_head_params.h"

namespace gradus::kernels {

// The language-model head fused with what follows it, on the GPU: logits z = W h are reduced as
// they are made and never stored. FlashSampling (arXiv:2603.15854): the token is argmax z_i / T +
// g_i.
//
// Letters: B rows, V vocabulary, D width. W and h are bf16; each z is one chain of fused
// multiply-adds over increasing k in fp32, whatever tile computes it, and sums over the vocabulary
// follow one tree fixed by V, so every result is a function of the row, W and the row's settings
// alone: not of B, the row's place, the tile or the split of the vocabulary. The noise is that of
// kernels/sampling.h and the decisions are those of sample_token() on the same logits.
//
// CUDA functions enqueue on `stream`; they neither allocate nor synchronise. One launch each; calls
// that share a workspace must not overlap.

// For calls of up to b rows of a vocabulary of v. What lies where in the sampler's depends on b, so
// calls that share one name the same workspace_rows.
size_t lm_head_sample_workspace_bytes(const Cuda& cuda, int64_t b, int64_t v);
size_t lm_head_score_workspace_bytes(const Cuda& cuda, int64_t b, int64_t v);

// InvalidArgument names the first parameter outside its range; Unavailable a CUDA error.
Status lm_head_sample(const Cuda& cuda, const LmHeadSampleParams& params);

// Log-probabilities of given tokens, bit for bit those that lm_head_sample gives for the same row,
// weights, temperature and token (greedy: temperature 1).
Status lm_head_score(const Cuda& cuda, const LmHeadScoreParams& params);

// --- training: no [B, V] tensor anywhere ---
//
// The products are cuBLAS' (kernels/device_product.h, whose notes on the first call and on streams
// hold here too), so that gradients are equal bit for bit from run to run for the same shapes. The
// logits are the scorer's bits; dz is rounded to bf16 once. Workspaces need not be zeroed and may
// be shared with other operators of the stream.

// `rows` with a gradient: b, or r where rows_R is given. Below 300 MB for D <= 4096 and V <= 2^18.
size_t lm_head_backward_workspace_bytes(const Cuda& cuda, int64_t rows, int64_t v, int64_t d,
                                        bool rows_given = false);
size_t lm_head_train_workspace_bytes(const Cuda& cuda, int64_t b, int64_t v, int64_t d);

// After lm_head_score, logits again: four products for forward and backward together, cut over the
// vocabulary.
Status lm_head_backward(const Cuda& cuda, const LmHeadBackwardParams& params);

// Three products: exponentials of a wave of rows stay in the workspace, exp(x - x_token) in bf16,
// and what normalises them is a factor of the row, put on h and dh. A wave in which a token's
// log-probability is below -60, where that would lose range, computes its exponentials again.
Status lm_head_train(const Cuda& cuda, const LmHeadTrainParams& params);

}  // namespace gradus::kernels
