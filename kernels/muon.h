// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gradus::kernels {

// Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum whose matrix is
// replaced by the nearest orthogonal one, so that every direction of a weight moves alike. For the
// matrices of hidden layers; embeddings, heads and vectors want AdamW (kernels/optimizer.h).
//   g = gradient * gradient_scale
//   m = momentum m + (1 - momentum) g,  u = momentum m + (1 - momentum) g      (Nesterov)
//   o = newton_schulz(u)
//   w = w - learning_rate weight_decay w
//   w = w - learning_rate o
// Newton-Schulz: x = u / max(|u|_F, 1e-7), transposed if N > K; then five times
//   s = x x^T,  x = a x + (b s + c s s) x,  a = 3.4445, b = -4.7750, c = 2.0315
// which brings singular values to about [0.7, 1.2] whatever they were above 1/500 of the norm.
//
// fp32. Products are those of kernels/gemm.h, chains over increasing index, and everything else is
// elementwise, so bits do not depend on threads or instruction set. No allocation: the caller gives
// the scratch memory. Differs from the published code, whose products are in bf16.
//
// Letters: N outputs, K inputs of the matrix, in panels of 16 outputs (kernels/gemm.h); R = min(N,
// K), C = max(N, K). Arrays are 64-byte aligned and do not overlap; no size is 0.
struct MuonParams {
  float* w_packed = nullptr;         // in/out packed_size(N, K)
  const float* g_packed = nullptr;   // packed_size(N, K), padding 0
  float* momentum_packed = nullptr;  // in/out packed_size(N, K), padding 0
  float* scratch = nullptr;          // muon_scratch_size(N, K) floats
  int64_t n = 0, k = 0;
  float gradient_scale = 1;  // of clipping
  float momentum = 0.95f;
  float learning_rate = 0;
  // Of the orthogonal matrix: sqrt(max(1, N / K)), or 0.2 sqrt(max(N, K)) for steps as large as
  // those of AdamW (Liu et al. 2025, arXiv:2502.16982, Eq. 4).
  float update_scale = 1;
  float weight_decay = 0;
};
void muon(const MuonParams& params);

// Floats that muon() needs beside its arguments: about 2 N K + 3 R^2.
int64_t muon_scratch_size(int64_t n, int64_t k);

}  // namespace gradus::kernels
