// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/mlp_pass.h"

#include <algorithm>

#include "kernels/gemm.h"

namespace gradus::federated::internal {

MlpPass::MlpPass(std::span<const MlpTask::Layer> layers, int64_t max_batch) : layers_(layers) {
  strides_.push_back(layers[0].inputs);
  for (const MlpTask::Layer& layer : layers) {
    strides_.push_back(kernels::padded(layer.outputs));
    upstream_stride_ = std::max(upstream_stride_, kernels::padded(layer.inputs));
  }
  for (const int64_t stride : strides_) activations_.emplace_back(max_batch * stride);
  for (AlignedBuffer& buffer : upstream_) buffer = AlignedBuffer(max_batch * upstream_stride_);
}

void MlpPass::forward(const float* model, int64_t batch) {
  for (size_t l = 0; l < layers_.size(); ++l) {
    const MlpTask::Layer& layer = layers_[l];
    float* out = activations_[l + 1].data();
    kernels::gemm_forward({.x_MK = activations_[l].data(),
                           .x_stride = strides_[l],
                           .w_packed = model + layer.weight,
                           .bias_N = model + layer.bias,
                           .y_MN = out,
                           .y_stride = strides_[l + 1],
                           .m = batch,
                           .n = layer.outputs,
                           .k = layer.inputs});
    if (l + 1 == layers_.size()) break;
    const int64_t count = batch * strides_[l + 1];
    for (int64_t i = 0; i < count; ++i) out[i] = out[i] > 0 ? out[i] : 0;
  }
}

void MlpPass::backward(const float* model, int64_t batch, const float* extra, float* gradient) {
  const float* dy = activations_.back().data();
  int64_t dy_stride = strides_.back();
  for (size_t l = layers_.size(); l-- > 0;) {
    const MlpTask::Layer& layer = layers_[l];
    kernels::gemm_backward_weight({.dy_MN = dy,
                                   .dy_stride = dy_stride,
                                   .x_MK = activations_[l].data(),
                                   .x_stride = strides_[l],
                                   .dw_packed = gradient + layer.weight,
                                   .m = batch,
                                   .n = layer.outputs,
                                   .k = layer.inputs});
    float* bias = gradient + layer.bias;
    std::fill_n(bias, layer.outputs, 0.0f);
    for (int64_t i = 0; i < batch; ++i) {
      const float* row = dy + i * dy_stride;
      for (int64_t j = 0; j < layer.outputs; ++j) bias[j] += row[j];
    }
    if (l == 0) break;
    float* dx = upstream_[l % 2].data();
    kernels::gemm_backward_input({.dy_MN = dy,
                                  .dy_stride = dy_stride,
                                  .w_packed = model + layer.weight,
                                  .dx_MK = dx,
                                  .dx_stride = upstream_stride_,
                                  .m = batch,
                                  .n = layer.outputs,
                                  .k = layer.inputs});
    const float* x = activations_[l].data();
    for (int64_t i = 0; i < batch; ++i) {
      float* row = dx + i * upstream_stride_;
      const float* active = x + i * strides_[l];
      if (extra != nullptr && l + 1 == layers_.size()) {
        for (int64_t j = 0; j < layer.inputs; ++j) row[j] += extra[i * layer.inputs + j];
      }
      for (int64_t j = 0; j < layer.inputs; ++j) row[j] = active[j] > 0 ? row[j] : 0;
    }
    dy = dx;
    dy_stride = upstream_stride_;
  }
}

}  // namespace gradus::federated::internal
