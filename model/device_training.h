// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/status.h"
#include "data/packing.h"
#include "kernels/cuda.h"
#include "kernels/device_backward.h"
#include "model/device_training_state.h"
#include "model/device_transformer.h"

namespace gradus::model {

// TrainingPass on the device: log-probs of a pack's targets, bit for bit those that DeviceEngine
// records under the same weights, and their gradient. Activations are bf16, the residual stream
// and its gradient fp32. Everything repeats bit for bit; a weight's gradient depends in its last
// bits on how a batch is cut into packs. Not thread-safe.
class DeviceTrainingPass {
 public:
  // `state` null: forward alone. With gradient checkpointing a layer keeps its input, and its
  // forward is run again. Both outlive it.
  DeviceTrainingPass(DeviceTransformer& transformer, DeviceTrainingState* state,
                     bool gradient_checkpointing);
  ~DeviceTrainingPass();

  // As TrainingPass::forward(). Unavailable names what did not fit into the device's memory.
  Status forward(const data::Pack& pack, float temperature, bool keep_for_backward);
  std::span<const float> logprobs() const { return logprobs_; }    // [targets], host memory
  std::span<const float> entropies() const { return entropies_; }  // [targets]

  // Adds the gradient of sum_i dlogprobs[i] logprobs[i] + dentropies[i] entropies[i] to the
  // state's. After forward(keep_for_backward = true) of the same pack, once. Targets without a
  // gradient cost nothing in the head.
  Status backward(std::span<const float> dlogprobs, std::span<const float> dentropies);

  // Gives the memory of activations back.
  void release();
  // Bytes that a pack of this many rows, with as many targets, takes beside weights and state.
  static int64_t planned_bytes(const ModelConfig& config, int64_t num_rows,
                               bool gradient_checkpointing, bool keep_for_backward);

 private:
  struct Memory;
  struct Places;
  struct Order;
  Status reserve(const Order& order, int64_t num_targets);
  Status head_forward();
  Status head_backward(std::span<const float> dlogprobs, std::span<const float> dentropies,
                       bool* is_any);
  Status norm_backward(const float* x_TD, int64_t weight, const int32_t* rows_R,
                       const kernels::GradientRows& dy, int64_t count);
  Status layer_forward(int64_t layer, float* output);
  Status layer_backward(int64_t layer);
  bool keeps_layers() const { return keep_for_backward_ && !gradient_checkpointing_; }

  DeviceTransformer& transformer_;
  DeviceTrainingState* state_;
  bool gradient_checkpointing_;
  bool keep_for_backward_ = false;
  float temperature_ = 1;
  std::unique_ptr<Order> order_;
  std::unique_ptr<Memory> memory_;
  std::vector<float> logprobs_, entropies_, lse_;
};

}  // namespace gradus::model
