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
#include "model/device_transformer.h"
#include "model/transformer.h"

namespace gradus::model {

// One update of all weights (kernels/optimizer.h): matrices are decayed, norms and biases are not.
struct AdamwStep {
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  int64_t step = 1;  // from 1, for the corrections of the moments
  double scale = 1;  // of the gradient: clipping
};

// fp32 masters, gradients and AdamW's moments on the device, beside the bf16 weights of a
// DeviceTransformer, which are the masters rounded and which an engine may read too. "Host" arrays
// are in the layout of the parameters of a model::Transformer of the same config. Work is ordered
// on the default stream; what returns numbers, and what changes weights, waits for it. Not
// thread-safe.
class DeviceTrainingState {
 public:
  // Masters are the host's parameters. Unavailable names what did not fit. `transformer` outlives
  // it.
  static Result<std::unique_ptr<DeviceTrainingState>> create(DeviceTransformer& transformer,
                                                             const Transformer& host);

  Status upload(const float* parameters);  // to the masters and to the bf16 weights
  Status download(float* parameters) const;
  Status clear_gradients();
  // L2 norm over all gradients, in one order; may be infinite or NaN.
  Result<double> gradient_norm();
  // Of the masters' bits, in the device's order: another number than hash_parameters() of the
  // host's.
  Result<uint64_t> hash();
  Status gradients_to_host(float* gradients) const;
  Status apply(const AdamwStep& step);
  Status moments_to_host(float* m, float* v) const;
  Status moments_from_host(const float* m, const float* v);

  // One array of fp32 numbers for all weights, in the device's order: for sums over ranks.
  float* gradients() { return gradients_.as<float>(); }
  int64_t num_floats() const { return num_floats_; }

  // Of the weight at this offset of the transformer's; null for -1.
  float* gradient_at(int64_t offset) const;
  static int64_t bytes(const ModelConfig& config);

 private:
  struct Tensor {
    int64_t offset = 0;             // bytes, among the transformer's weights
    int64_t first = 0;              // float, in the arrays here
    int64_t rows = 0, columns = 0;  // columns 0: a vector
    int64_t first_part = 0, end_part = 0;
    int64_t size() const { return columns == 0 ? rows : rows * columns; }
  };
  DeviceTrainingState(DeviceTransformer& transformer, const Transformer& host,
                      std::vector<Tensor> tensors, int64_t num_floats, kernels::CudaBuffer masters,
                      kernels::CudaBuffer gradients, kernels::CudaBuffer m, kernels::CudaBuffer v,
                      kernels::CudaBuffer sums);
  static std::vector<Tensor> tensors_of(const std::vector<DevicePart>& parts, int64_t* num_floats);
  Status from_host(const float* host, const kernels::CudaBuffer& to) const;
  Status to_host(const kernels::CudaBuffer& from, float* host) const;
  Status refresh();

  DeviceTransformer& transformer_;
  const ParameterLayout layout_;
  std::vector<DevicePart> parts_;
  std::vector<Tensor> tensors_;
  int64_t num_floats_;
  kernels::CudaBuffer masters_, gradients_, m_, v_, sums_;
};

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
