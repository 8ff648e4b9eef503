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
#include "common/status.h"
#include "data/packing.h"
#include "model/training_pass.h"
#include "records/state_shards.h"
#include "trainer/optimizer.h"
#include "trainer/trainer_config.h"
#include "trainer/weight_shards.h"

namespace gradus::trainer {

// The learning rate of update `step` (from 0): linear warm-up over warmup_steps, then constant,
// linear or cosine down to min_lr_ratio at num_steps.
double learning_rate_at(const OptimizerConfig& config, int64_t step, int64_t num_steps);

// The groups of a batch in runs of consecutive groups: block b of n has groups [b count / n, (b +
// 1) count / n). Block sums meet in a fixed binary tree, so neither ranks nor micro-batches change
// a bit of the gradient.
struct BlockRange {
  int64_t first_group = 0, end_group = 0;
};
std::vector<BlockRange> block_ranges(int64_t num_groups, int64_t num_blocks);
// The blocks of one rank: consecutive ones. `num_ranks` divides `num_blocks`.
BlockRange blocks_of_rank(int64_t num_blocks, int rank, int num_ranks);

struct UpdateStats {
  double grad_norm = 0;
  int64_t num_rows = 0;        // computed on this rank
  double compute_seconds = 0;  // forward and backward on this rank, without waiting for others
};

// What made a gradient not finite: a sequence of the batch, or the sum over the batch alone (-1).
struct NonFinite {
  int64_t group = -1, response = -1;
  std::string what;  // e.g. "the gradient of 'model.norm.weight'"
};

// Computes one gradient over the batch's groups, shared out over the ranks, and applies the
// optimizer: to all weights, or to the adapter that the transformer has by then. All ranks hold the
// same weights before and after. Without backward.layout_invariant a rank's groups are one block
// and gradients go round a ring: repeatable, but not equal over numbers of ranks. Not thread-safe.
class Learner {
 public:
  Learner(model::Transformer& transformer, const OptimizerConfig& optimizer,
          const BackwardConfig& backward, comm::Communicator& communicator);

  // What the loss says about the targets of groups [first_group, first_group + num_groups): fills
  // the gradients of its share of the global loss by log-prob and by entropy.
  using LossFunction = std::function<Status(
      int64_t first_group, int64_t num_groups, std::span<const float> logprobs,
      std::span<const float> entropies, std::span<float> dlogprobs, std::span<float> dentropies)>;

  // `groups` are those of the whole batch, of which this rank computes its blocks;
  // `needs_gradient[g]` false promises that group g has none: it is only run forward. DataLoss if
  // the gradient is not finite or a log-prob is NaN; the weights are then unchanged, and
  // non_finite() says where a gradient began not to be (`loss` is then called again, for each group
  // alone). An error of the loss on any rank ends the update on all.
  Result<UpdateStats> update(std::span<const data::PackGroup> groups,
                             const std::vector<bool>& needs_gradient, float temperature,
                             double learning_rate, const LossFunction& loss);

  // Forward alone over this rank's groups, in order: log-probs of all targets to
  // `consume(first_group, num_groups, logprobs, entropies)`.
  void forward(std::span<const data::PackGroup> groups, float temperature,
               const std::function<void(int64_t, int64_t, std::span<const float>,
                                        std::span<const float>)>& consume);

  // Brings all weights together on every rank, for whoever reads them as a whole; an update ends
  // that with zero_stage 3. Collective.
  void whole_weights();
  // Calls `body(begin, end)` for ranges of the weights, or of their average, that together are all,
  // while the floats of the range are there. Collective.
  void visit_weights(const std::function<void(int64_t, int64_t)>& body);
  void visit_average(const std::function<void(int64_t, int64_t)>& body);
  // Gives back what other ranks hold, after the whole average was written to.
  void average_was_loaded();

  // Groups [first, end) of a batch that this rank computes.
  BlockRange groups_of_this_rank(int64_t num_groups) const;

  // Of the last update: empty unless its gradient was not finite. The same on all ranks.
  const std::optional<NonFinite>& non_finite() const { return non_finite_; }

  int64_t num_updates() const { return optimizer_.num_updates(); }
  // Adds this rank's share of the optimizer's state, and reads what it holds of it.
  void save(records::StateSnapshot& snapshot) const {
    optimizer_.save(snapshot, communicator_.rank(), communicator_.size());
  }
  Status load(const records::StateShards& shards) { return optimizer_.load(shards); }

  // The running average of the weights in the layout of what is trained, or null.
  const float* average() const { return optimizer_.average(); }
  float* average() { return optimizer_.average(); }

  // Runs `body` with the running average of the weights in the model's place, if the optimizer
  // keeps one; the weights are back afterwards.
  Status with_average(const std::function<Status()>& body);

 private:
  std::unique_ptr<model::Gradients> new_gradients() const;
  std::vector<BlockRange> own_blocks(int64_t num_groups) const;
  void reduce(std::span<float> values);
  Status accumulate(std::span<const data::PackGroup> groups,
                    const std::vector<bool>& needs_gradient, BlockRange block, float temperature,
                    const LossFunction& loss, model::Gradients& gradients, UpdateStats& stats);
  int64_t micro_batch_end(std::span<const data::PackGroup> groups,
                          const std::vector<bool>& needs_gradient, int64_t first, int64_t end,
                          int64_t& num_rows) const;
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
  void visit(float* values, bool is_whole, bool is_locked,
             const std::function<void(int64_t, int64_t)>& body);
  std::vector<double> squares_by_weight(const float* gradient) const;
  std::string non_finite_weight(std::span<const double> squares) const;
  Status check_logprobs(std::span<const float> logprobs) const;
  NonFinite locate_non_finite(std::span<const data::PackGroup> groups,
                              const std::vector<bool>& needs_gradient, float temperature,
                              const LossFunction& loss, const std::string& weight);
  std::optional<NonFinite> locate_in_group(std::span<const data::PackGroup> groups, int64_t group,
                                           bool needs_gradient, float temperature,
                                           const LossFunction& loss);

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
