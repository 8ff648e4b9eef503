// SPDX-License-Identifier: Apache-2.0
#include "kernels/muon.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "common/parallel.h"
#include "kernels/gemm.h"
#include "kernels/optimizer.h"

namespace gradus::kernels {
namespace {

// Coefficients of the quintic and its number of steps, from the paper.
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
constexpr int kNumSteps = 5;
constexpr float kSmallestNorm = 1e-7f;
constexpr int64_t kGrainFloats = 16384;

// The parts of the scratch memory, each starting at a multiple of 16 floats.
struct Scratch {
  int64_t rows, columns;      // R, C
  int64_t x, packed;          // [R, C]; panels of x, and of the update before and after
  int64_t gram, gram_packed;  // [R, padded(R)]; its panels
  int64_t square;             // [R, padded(R)]
  int64_t size;

  Scratch(int64_t n, int64_t k) : rows(std::min(n, k)), columns(std::max(n, k)) {
    const int64_t gram_size = packed_size(rows, rows);
    x = 0;
    packed = padded(rows * columns);
    gram = packed + std::max(packed_size(n, k), packed_size(rows, columns));
    gram_packed = gram + gram_size;
    square = gram_packed + gram_size;
    size = square + gram_size;
  }
};

template <class Body>
void for_panels(int64_t n, int64_t k, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrainFloats / (kPanelWidth * k));
  parallel_for(padded(n) / kPanelWidth, grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) body(p, std::min(kPanelWidth, n - p * kPanelWidth));
  });
}

// Momentum in place, the update that it gives into `update`.
void update_momentum(const MuonParams& params, float* update) {
  const float rest = 1.0f - params.momentum;
  parallel_for(packed_size(params.n, params.k), kGrainFloats, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float g = rest * (params.g_packed[i] * params.gradient_scale);
      const float m = params.momentum * params.momentum_packed[i] + g;
      params.momentum_packed[i] = m;
      update[i] = params.momentum * m + g;
    }
  });
}

// x [R, C] = panels of [N, K] times `scale`, transposed if N > K.
void read_panels(const float* panels, int64_t n, int64_t k, float scale, float* x) {
  for_panels(n, k, [&](int64_t p, int64_t width) {
    const float* panel = panels + p * kPanelWidth * k;
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const int64_t row = p * kPanelWidth + j;
        x[n > k ? i * n + row : row * k + i] = panel[i * kPanelWidth + j] * scale;
      }
    }
  });
}

// x [R, C] -> a x + (b s + c s s) x with s = x x^T. s is symmetric to the bit, so its rows serve as
// its columns.
void newton_schulz_step(const Scratch& parts, float* scratch) {
  const int64_t rows = parts.rows, columns = parts.columns, stride = padded(rows);
  float *x = scratch + parts.x, *packed = scratch + parts.packed;
  float *gram = scratch + parts.gram, *square = scratch + parts.square;
  pack_weight(x, columns, rows, columns, packed);
  gemm_forward({.x_MK = x,
                .x_stride = columns,
                .w_packed = packed,
                .y_MN = gram,
                .y_stride = stride,
                .m = rows,
                .n = rows,
                .k = columns});
  pack_weight(gram, stride, rows, rows, scratch + parts.gram_packed);
  gemm_forward({.x_MK = gram,
                .x_stride = stride,
                .w_packed = scratch + parts.gram_packed,
                .y_MN = square,
                .y_stride = stride,
                .m = rows,
                .n = rows,
                .k = rows});
  parallel_for(rows * stride, kGrainFloats, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) square[i] = kB * gram[i] + kC * square[i];
  });
  parallel_for(rows * columns, kGrainFloats, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x[i] *= kA;
  });
  gemm_backward_input({.dy_MN = square,
                       .dy_stride = stride,
                       .w_packed = packed,
                       .dx_MK = x,
                       .dx_stride = columns,
                       .m = rows,
                       .n = rows,
                       .k = columns,
                       .accumulate = true});
}

// Decay and step of the weights, padding left alone.
void apply(const MuonParams& params, const float* x) {
  const int64_t n = params.n, k = params.k;
  const float decay = params.learning_rate * params.weight_decay;
  const float rate = params.learning_rate * params.update_scale;
  for_panels(n, k, [&](int64_t p, int64_t width) {
    float* panel = params.w_packed + p * kPanelWidth * k;
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const int64_t row = p * kPanelWidth + j;
        float& w = panel[i * kPanelWidth + j];
        w = w - decay * w;
        w = w - rate * x[n > k ? i * n + row : row * k + i];
      }
    }
  });
}

}  // namespace

int64_t muon_scratch_size(int64_t n, int64_t k) { return Scratch(n, k).size; }

void muon(const MuonParams& params) {
  GRADUS_CHECK(params.n >= 1 && params.k >= 1, "muon needs a matrix of at least one weight");
  const Scratch parts(params.n, params.k);
  float *x = params.scratch + parts.x, *update = params.scratch + parts.packed;
  update_momentum(params, update);
  const double norm = std::sqrt(sum_of_squares(update, packed_size(params.n, params.k)));
  const float scale = 1.0f / std::max(static_cast<float>(norm), kSmallestNorm);
  read_panels(update, params.n, params.k, scale, x);
  for (int step = 0; step < kNumSteps; ++step) newton_schulz_step(parts, params.scratch);
  apply(params, x);
}

}  // namespace gradus::kernels
