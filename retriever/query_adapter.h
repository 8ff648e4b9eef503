// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/bert_encoder.h"

namespace gradus::retriever {

// LoRA (Hu et al. 2021, arXiv:2106.09685, Eq. 3) on all matrices of an encoder's layers, query, key
// and value each by itself: W [N, K] is trained as W + s B A with A [r, K] and B [N, r]. The
// encoder always holds the merged matrices, as in model/lora.h, so that drawing and training run
// one forward. A is uniform in +-1 / sqrt(K), a function of (seed, matrix); B is 0. Words,
// positions, norms and biases stay. Not thread-safe.
class QueryAdapter {
 public:
  // Copies the encoder's matrices, to which the factors are added. The encoder outlives it; rank
  // at least 1.
  QueryAdapter(model::BertEncoder& encoder, int64_t rank, double scale, uint64_t seed);

  // Derivatives by the factors, from those by the merged matrices.
  void take_gradients(const model::BertWeights& gradients);
  // Writes the merged matrices into the encoder.
  void merge();

  // A, B, A, B, ... of each matrix in turn.
  struct Factor {
    std::vector<float> values, gradients, m, v;
  };
  std::vector<Factor>& factors() { return factors_; }

 private:
  // N rows of a product's matrix, from `first` on.
  struct Part {
    size_t layer = 0;
    int which = 0;  // qkv, attention, inner, outer
    int64_t first = 0, n = 0, k = 0;
    std::vector<float> base;  // [N, K]
  };

  model::BertEncoder& encoder_;
  int64_t rank_;
  float scale_;
  std::vector<Part> parts_;
  std::vector<Factor> factors_;
};

}  // namespace gradus::retriever
