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

}  // namespace gradus::kernels
