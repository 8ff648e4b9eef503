// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/aligned_buffer.h"
#include "federated/mlp.h"

namespace gradus::federated::internal {

// Forward and backward of a batch, with the activations in between. One thread.
class MlpPass {
 public:
  MlpPass(std::span<const MlpTask::Layer> layers, int64_t max_batch);

  // Rows of the batch, to be filled: [B, F].
  float* input() { return activations_[0].data(); }
  // Logits of the batch, rows logits_stride() apart.
  void forward(const float* model, int64_t batch);
  float* logits() { return activations_.back().data(); }
  int64_t logits_stride() const { return strides_.back(); }
  // The last hidden layer (the input, if there is none): [B, width], rows `stride` apart.
  const float* representation() const { return activations_[activations_.size() - 2].data(); }
  int64_t representation_width() const { return layers_.back().inputs; }
  int64_t representation_stride() const { return strides_[strides_.size() - 2]; }

  // Gradient of the parameters; the logits hold the gradient of the loss. `extra`, if not null, is
  // added to the gradient of the representation [B, width].
  void backward(const float* model, int64_t batch, const float* extra, float* gradient);

 private:
  std::span<const MlpTask::Layer> layers_;
  std::vector<AlignedBuffer> activations_;  // input, hidden layers after ReLU, logits
  std::vector<int64_t> strides_;
  AlignedBuffer upstream_[2];  // gradients of a hidden layer
  int64_t upstream_stride_ = 0;
};

}  // namespace gradus::federated::internal
