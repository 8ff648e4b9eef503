// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>

#include "common/status.h"
#include "data/packing.h"
#include "model/training_pass.h"
#include "model/transformer.h"

namespace gradus::trainer {

// The model that a run began from, which a KL term compares the policy with: log-probs of packs by
// weights that never change, on the CPU or on a GPU (DeviceReferenceModel). Not thread-safe.
class ReferenceModel {
 public:
  virtual ~ReferenceModel() = default;
  // Log-softmax(logits / temperature) of each target and the entropy of its row, nats.
  virtual Status forward(const data::Pack& pack, float temperature) = 0;
  // Of the last forward(); [targets].
  virtual std::span<const float> logprobs() const = 0;
  virtual std::span<const float> entropies() const = 0;
};

class CpuReferenceModel : public ReferenceModel {
 public:
  // Copies the weights as they are.
  explicit CpuReferenceModel(const model::Transformer& policy);
  Status forward(const data::Pack& pack, float temperature) override;
  std::span<const float> logprobs() const override { return pass_.logprobs(); }
  std::span<const float> entropies() const override { return pass_.entropies(); }

 private:
  model::Transformer transformer_;
  model::TrainingPass pass_;
};

}  // namespace gradus::trainer
