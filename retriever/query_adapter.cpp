// SPDX-License-Identifier: Apache-2.0
#include "retriever/query_adapter.h"

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "common/rng.h"
#include "kernels/gemm.h"

namespace gradus::retriever {
namespace {

// The rows of a packed matrix.
std::vector<float> rows_of(const model::BertWeights::Linear& linear) {
  std::vector<float> rows(static_cast<size_t>(linear.outputs * linear.inputs));
  kernels::unpack_weight(linear.weight.data(), linear.outputs, linear.inputs, rows.data(),
                         linear.inputs);
  return rows;
}

// `which` of the products of a layer: qkv, attention, inner, outer.
template <class Weights>
auto& linear_of(Weights& weights, size_t layer, int which) {
  auto& of = weights.layers[layer];
  decltype(&of.qkv) linears[] = {&of.qkv, &of.attention, &of.inner, &of.outer};
  return *linears[which];
}

// y += a x
void add_scaled(float a, const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] += a * x[i];
}

}  // namespace

QueryAdapter::QueryAdapter(model::BertEncoder& encoder, int64_t rank, double scale, uint64_t seed)
    : encoder_(encoder), rank_(rank), scale_(static_cast<float>(scale)) {
  const model::BertWeights& weights = encoder.weights();
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    for (int which = 0; which < 4; ++which) {
      const model::BertWeights::Linear& linear = linear_of(weights, layer, which);
      const std::vector<float> rows = rows_of(linear);
      const int64_t num_parts = which == 0 ? 3 : 1, n = linear.outputs / num_parts,
                    k = linear.inputs;
      for (int64_t p = 0; p < num_parts; ++p) {
        parts_.push_back(
            {layer, which, p * n, n, k,
             std::vector<float>(rows.begin() + p * n * k, rows.begin() + (p + 1) * n * k)});
        const auto add = [this](int64_t size) -> Factor& {
          const std::vector<float> zeros(static_cast<size_t>(size));
          return factors_.emplace_back(Factor{zeros, zeros, zeros, zeros});
        };
        RngSequence random(hash64({seed, parts_.size()}), RngStream::kInit);
        const double bound = 1 / std::sqrt(static_cast<double>(k));
        for (float& value : add(rank * k).values) {
          value = static_cast<float>(bound * (2 * random.uniform() - 1));
        }
        add(n * rank);
      }
    }
  }
}

// dA = s B^T dW, dB = s dW A^T.
void QueryAdapter::take_gradients(const model::BertWeights& gradients) {
  std::vector<float> rows;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    if (part.first == 0) rows = rows_of(linear_of(gradients, part.layer, part.which));
    const float* dw = rows.data() + part.first * part.k;
    Factor &a = factors_[2 * i], &b = factors_[2 * i + 1];
    parallel_for(rank_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float* da = a.gradients.data() + r * part.k;
        std::fill_n(da, part.k, 0.0f);
        for (int64_t n = 0; n < part.n; ++n) {
          add_scaled(scale_ * b.values[static_cast<size_t>(n * rank_ + r)], dw + n * part.k, part.k,
                     da);
        }
      }
    });
    parallel_for(part.n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t r = 0; r < rank_; ++r) {
          double sum = 0;
          for (int64_t k = 0; k < part.k; ++k) {
            sum += double{dw[n * part.k + k]} * a.values[static_cast<size_t>(r * part.k + k)];
          }
          b.gradients[static_cast<size_t>(n * rank_ + r)] = static_cast<float>(scale_ * sum);
        }
      }
    });
  }
}

void QueryAdapter::merge() {
  std::vector<float> rows;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    model::BertWeights::Linear& linear = linear_of(encoder_.weights(), part.layer, part.which);
    rows.resize(static_cast<size_t>(linear.outputs * linear.inputs));
    const Factor &a = factors_[2 * i], &b = factors_[2 * i + 1];
    parallel_for(part.n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        float* row = rows.data() + (part.first + n) * part.k;
        std::copy_n(part.base.data() + n * part.k, part.k, row);
        for (int64_t r = 0; r < rank_; ++r) {
          add_scaled(scale_ * b.values[static_cast<size_t>(n * rank_ + r)],
                     a.values.data() + r * part.k, part.k, row);
        }
      }
    });
    if (part.first + part.n == linear.outputs) {
      kernels::pack_weight(rows.data(), part.k, linear.outputs, part.k, linear.weight.data());
    }
  }
}

}  // namespace gradus::retriever
