// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "common/status.h"
#include "data/packing.h"
#include "model/device_training.h"

namespace gradus::trainer {

// The training of one model on a device, as DeviceLearner asks for it: weights, their gradient and
// AdamW's moments stay there, shared out over ranks by zero_stage. Arrays of the host are in the
// layout of the parameters of the model::Transformer (padding is left alone). What changes or reads
// weights, moments or the sum of gradients is collective. Not thread-safe.
class TrainingDevice {
 public:
  virtual ~TrainingDevice() = default;

  virtual Status upload(const float* parameters) = 0;
  virtual Status download(float* parameters) const = 0;

  // Weights where passes of an update read them, or where an engine does.
  virtual Status ready_for_update() = 0;
  virtual Status ready_for_engine() = 0;
  // Equal weights have equal hashes, in any process.
  virtual Result<uint64_t> weights_hash() = 0;

  virtual Status clear_gradients() = 0;
  // The sum over all ranks, on every rank, the same bits. Collective.
  virtual Status sum_gradients_over_ranks() = 0;
  // L2 over all weights, summed in one order; may be infinite or NaN.
  virtual Result<double> gradient_norm() = 0;
  virtual Status gradients_to_host(float* gradients) const = 0;

  virtual Status apply(const model::AdamwStep& step) = 0;
  virtual Status moments_to_host(float* m, float* v) const = 0;
  virtual Status moments_from_host(const float* m, const float* v) = 0;

  // As model::TrainingPass; backward() adds to the gradients.
  virtual Status forward(const data::Pack& pack, float temperature, bool keep_for_backward) = 0;
  virtual std::span<const float> logprobs() const = 0;   // [targets]
  virtual std::span<const float> entropies() const = 0;  // [targets]
  virtual Status backward(std::span<const float> dlogprobs, std::span<const float> dentropies) = 0;

  // Whether passes exchange with other ranks: all then make the same forwards and, after each with
  // keep_for_backward on any rank, backwards; the idle ones have no rows.
  virtual bool is_lockstep() const = 0;
  virtual Status idle_forward() = 0;
  virtual Status idle_backward() = 0;
  // Runs `body` with passes that exchange nothing, each on this rank's own gradient. Unavailable,
  // before `body`, if the memory for that is not there; the same on all ranks.
  virtual Status alone(const std::function<Status()>& body) = 0;

  // Gives the memory of activations back, so that an engine can have it.
  virtual void release_activations() = 0;
};

}  // namespace gradus::trainer
