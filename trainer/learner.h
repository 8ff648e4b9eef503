// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "data/packing.h"
#include "records/state_shards.h"
#include "trainer/trainer_config.h"

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
// optimizer: on the CPU (CpuLearner) or on a GPU (DeviceLearner). All ranks hold the same weights
// before and after. The host's transformer is where checkpoints read the weights, after
// whole_weights() or within visit_weights(), and engines of the CPU after ready_for_engine(). A
// DeviceLearner returns what went wrong on the device; a CpuLearner never returns an error where
// none is named. Not thread-safe.
class Learner {
 public:
  virtual ~Learner() = default;

  // What the loss says about the targets of groups [first_group, first_group + num_groups): fills
  // the gradients of its share of the global loss by log-prob and by entropy.
  using LossFunction = std::function<Status(
      int64_t first_group, int64_t num_groups, std::span<const float> logprobs,
      std::span<const float> entropies, std::span<float> dlogprobs, std::span<float> dentropies)>;
  // Log-probs and entropies of the targets of such groups.
  using TargetFunction =
      std::function<void(int64_t first_group, int64_t num_groups, std::span<const float> logprobs,
                         std::span<const float> entropies)>;
  // Floats [begin, end) of the weights.
  using RangeFunction = std::function<void(int64_t begin, int64_t end)>;

  // `groups` are those of the whole batch, of which this rank computes its blocks;
  // `needs_gradient[g]` false promises that group g has none: it is only run forward. DataLoss if
  // the gradient is not finite or a log-prob is NaN; the weights are then unchanged, and
  // non_finite() says where a gradient began not to be (`loss` is then called again, for each group
  // alone). An error of the loss on any rank ends the update on all.
  virtual Result<UpdateStats> update(std::span<const data::PackGroup> groups,
                                     const std::vector<bool>& needs_gradient, float temperature,
                                     double learning_rate, const LossFunction& loss) = 0;

  // Forward alone over this rank's groups, in order.
  virtual Status forward(std::span<const data::PackGroup> groups, float temperature,
                         const TargetFunction& consume) = 0;

  // Brings all weights together in the host's transformer on every rank, for whoever reads them as
  // a whole, until the next update. Collective.
  virtual Status whole_weights() = 0;
  // Brings all weights together where the engine of the same run reads them, until the next update:
  // that of a device reads them where they are. Collective.
  virtual Status ready_for_engine() = 0;
  // Hash of all weights, which every rollout names: equal weights have equal hashes, in any process
  // on the same kind of device. Collective; brings the weights together where that is how it is
  // made.
  virtual Result<uint64_t> weights_hash() = 0;
  // Calls `body` for ranges of the weights, or of their average, that together are all, while the
  // floats of the range are there. Collective.
  virtual Status visit_weights(const RangeFunction& body) = 0;
  virtual Status visit_average(const RangeFunction& body) = 0;
  // Gives back what other ranks hold, after the whole average was written to.
  virtual void average_was_loaded() = 0;

  // Groups [first, end) of a batch that this rank computes.
  virtual BlockRange groups_of_this_rank(int64_t num_groups) const = 0;

  // Of the last update: empty unless its gradient was not finite. The same on all ranks.
  virtual const std::optional<NonFinite>& non_finite() const = 0;

  virtual int64_t num_updates() const = 0;
  // Adds this rank's share of the optimizer's state, in the one format of checkpoints.
  virtual Status save(records::StateSnapshot& snapshot) const = 0;
  // Reads what it holds of it, and takes up the weights that were written into the host's
  // transformer before.
  virtual Status load(const records::StateShards& shards) = 0;

  // The running average of the weights in the layout of what is trained, or null.
  virtual float* average() = 0;
  // Runs `body` with the running average of the weights in the model's place, if there is one; the
  // weights are back afterwards.
  virtual Status with_average(const std::function<Status()>& body) = 0;
};

}  // namespace gradus::trainer
