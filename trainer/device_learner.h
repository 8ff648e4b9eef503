// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "model/transformer.h"
#include "trainer/learner.h"
#include "trainer/training_device.h"

namespace gradus::trainer {

// The learner on a GPU: AdamW on all weights. A rank's groups are cut into micro-batches of
// micro_batch_tokens, in order, whose gradients are added up on the device; ranks then sum theirs,
// or, with zero_stage 2 and 3, micro-batch by micro-batch. Runs repeat bit for bit; weights depend
// in their last bits on micro_batch_tokens and the number of ranks. The host's transformer gets the
// weights when they are asked for. Not thread-safe.
class DeviceLearner : public Learner {
 public:
  // `host` outlives this; the device has its weights. The optimizer is AdamW without an average.
  DeviceLearner(model::Transformer& host, std::unique_ptr<TrainingDevice> device,
                const OptimizerConfig& optimizer, const BackwardConfig& backward,
                comm::Communicator& communicator);

  Result<UpdateStats> update(std::span<const data::PackGroup> groups,
                             const std::vector<bool>& needs_gradient, float temperature,
                             double learning_rate, const LossFunction& loss) override;
  Status forward(std::span<const data::PackGroup> groups, float temperature,
                 const TargetFunction& consume) override;
  Status whole_weights() override;
  Status ready_for_engine() override { return device_->ready_for_engine(); }
  Result<uint64_t> weights_hash() override { return device_->weights_hash(); }
  Status visit_weights(const RangeFunction& body) override;
  Status visit_average(const RangeFunction& body) override;
  void average_was_loaded() override {}
  BlockRange groups_of_this_rank(int64_t num_groups) const override;
  const std::optional<NonFinite>& non_finite() const override { return non_finite_; }
  int64_t num_updates() const override { return num_updates_; }
  Status save(records::StateSnapshot& snapshot) const override;
  Status load(const records::StateShards& shards) override;
  float* average() override { return nullptr; }
  Status with_average(const std::function<Status()>& body) override { return body(); }

  TrainingDevice& device() { return *device_; }

 private:
  // Groups [first, end) of a batch in one pass.
  struct MicroBatch {
    int64_t first = 0, end = 0;
    bool needs_gradient = false;
  };
  // Goes through this rank's passes; in lockstep, through as many as the rank with most has.
  Status in_rounds(std::span<const MicroBatch> mine,
                   const std::function<Status(const MicroBatch*)>& forward,
                   const std::function<Status(const MicroBatch*)>& backward);
  Status add_gradients(std::span<const data::PackGroup> groups,
                       const std::vector<bool>& needs_gradient, float temperature,
                       const LossFunction& loss, UpdateStats& stats);
  Status find_non_finite(std::span<const data::PackGroup> groups,
                         const std::vector<bool>& needs_gradient, float temperature,
                         const LossFunction& loss);
  Result<std::string> broken_weight() const;

  model::Transformer& host_;
  std::unique_ptr<TrainingDevice> device_;
  OptimizerConfig optimizer_;
  BackwardConfig backward_;
  comm::Communicator& communicator_;
  int64_t num_updates_ = 0;
  bool is_host_current_ = true;
  std::optional<NonFinite> non_finite_;
};

}  // namespace gradus::trainer
