// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "model/training_pass.h"
#include "trainer/learner.h"
#include "trainer/optimizer.h"
#include "trainer/weight_shards.h"

namespace gradus::trainer {

// The learner on the CPU: updates all weights of a transformer, or the adapter that it has by then.
// Without backward.layout_invariant a rank's groups are one block and gradients go round a ring:
// repeatable, but not equal over numbers of ranks. With zero_stage 3 an update ends that the
// weights are whole. Not thread-safe.
class CpuLearner : public Learner {
 public:
  CpuLearner(model::Transformer& transformer, const OptimizerConfig& optimizer,
             const BackwardConfig& backward, comm::Communicator& communicator);

  Result<UpdateStats> update(std::span<const data::PackGroup> groups,
                             const std::vector<bool>& needs_gradient, float temperature,
                             double learning_rate, const LossFunction& loss) override;
  Status forward(std::span<const data::PackGroup> groups, float temperature,
                 const TargetFunction& consume) override;
  Status whole_weights() override;
  Status ready_for_engine() override { return whole_weights(); }
  Result<uint64_t> weights_hash() override;
  Status visit_weights(const RangeFunction& body) override;
  Status visit_average(const RangeFunction& body) override;
  void average_was_loaded() override;
  BlockRange groups_of_this_rank(int64_t num_groups) const override;
  const std::optional<NonFinite>& non_finite() const override { return non_finite_; }
  int64_t num_updates() const override { return optimizer_.num_updates(); }
  Status save(records::StateSnapshot& snapshot) const override;
  Status load(const records::StateShards& shards) override { return optimizer_.load(shards); }
  float* average() override { return optimizer_.average(); }
  Status with_average(const std::function<Status()>& body) override;

 private:
  std::unique_ptr<model::Gradients> new_gradients() const;
  std::vector<BlockRange> own_blocks(int64_t num_groups) const;
  void reduce(std::span<float> values);
  Status accumulate(std::span<const data::PackGroup> groups,
                    const std::vector<bool>& needs_gradient, BlockRange block, float temperature,
                    const LossFunction& loss, model::Gradients& gradients, UpdateStats& stats);
  // Passes that go through the model together, with zero_stage 2 and 3.
  struct MicroBatch {
    data::Pack pack;
    model::TrainingPass* pass = nullptr;
    size_t block = 0;  // of this rank's
    bool with_gradient = false;
    bool has_gradient = false;
  };
  Status sum_by_blocks(std::span<const data::PackGroup> groups,
                       const std::vector<bool>& needs_gradient, float temperature,
                       const LossFunction& loss, UpdateStats& stats);
  Status sum_by_layers(std::span<const data::PackGroup> groups,
                       const std::vector<bool>& needs_gradient, float temperature,
                       const LossFunction& loss, UpdateStats& stats);
  void forward_by_layers(std::span<MicroBatch> batches, float temperature);
  void sum_unit(int unit, size_t num_blocks,
                const std::function<void(size_t, model::Gradients&)>& add_block,
                UpdateStats& stats);
  model::TrainingPass* shared_pass(size_t index);
  model::Gradients& gradients_at(size_t depth);
  bool holds_slices() const { return backward_.zero_stage == 3 && shards_ != nullptr; }
  void expect(int unit);
  void enter(int unit);
  void leave(int unit);
  void leave_head();
  void shard_weights();
  void gather_weights();
  void visit(float* values, bool is_whole, bool is_locked, const RangeFunction& body);
  std::vector<double> squares_by_weight(const float* gradient) const;
  NonFinite find_non_finite(std::span<const data::PackGroup> groups,
                            const std::vector<bool>& needs_gradient, float temperature,
                            const LossFunction& loss, const std::string& weight);

  model::Transformer& transformer_;
  BackwardConfig backward_;
  comm::Communicator& communicator_;
  std::unique_ptr<WeightShards> shards_;  // null: this rank holds everything
  bool is_whole_ = true;                  // the weights, on this rank
  Optimizer optimizer_;
  model::TrainingPass pass_;
  std::shared_ptr<model::TrainingScratch> scratch_;
  std::vector<std::unique_ptr<model::TrainingPass>> shared_passes_;
  std::optional<NonFinite> non_finite_;
  std::unique_ptr<model::Gradients> total_;  // of the update that is being made
  std::vector<std::unique_ptr<model::Gradients>> free_gradients_;
  // With zero_stage 2 and 3: sums of blocks by depth; the first has this rank's slices in the end.
  std::vector<std::unique_ptr<model::Gradients>> layer_gradients_;
};

}  // namespace gradus::trainer
