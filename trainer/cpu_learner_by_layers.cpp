// SPDX-License-Identifier: Apache-2.0
// CpuLearner with zero_stage 2 and 3: a rank's packs go through the model together, layer by layer,
// so that one unit's weights and gradient are there at a time, whatever the number of packs.
#include <chrono>

#include "common/residency.h"
#include "kernels/norm.h"
#include "trainer/cpu_learner.h"
#include "trainer/internal/non_finite.h"

namespace gradus::trainer {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

// Makes the other ranks' slices of a unit come; enter() waits for them, leave() gives them back.
void CpuLearner::expect(int unit) {
  if (holds_slices()) shards_->start_gather(transformer_.parameters(), unit);
}

void CpuLearner::enter(int unit) {
  if (!holds_slices()) return;
  shards_->unlock_others(transformer_.parameters(), unit);
  shards_->finish_gather(transformer_.parameters(), unit);
}

void CpuLearner::leave(int unit) {
  if (holds_slices()) shards_->lock_others(transformer_.parameters(), unit);
}

// What forward_by_layers() ends with.
void CpuLearner::leave_head() {
  leave(shards_->tail());
  if (shards_->is_tied()) leave(WeightShards::kEmbedding);
}

void CpuLearner::shard_weights() {
  if (!holds_slices() || !is_whole_) return;
  for (int unit = 0; unit < shards_->num_units(); ++unit) leave(unit);
  is_whole_ = false;
}

void CpuLearner::gather_weights() {
  if (shards_ == nullptr || is_whole_) return;
  for (int unit = 0; unit < shards_->num_units(); ++unit) {
    shards_->unlock_others(transformer_.parameters(), unit);
  }
  shards_->gather(transformer_.parameters());
  is_whole_ = true;
}

void CpuLearner::visit(float* values, bool is_whole, bool is_locked, const RangeFunction& body) {
  if (is_whole) return body(0, transformer_.trainable().layout.size);
  shards_->start_gather(values, 0);
  for (int unit = 0; unit < shards_->num_units(); ++unit) {
    if (unit + 1 < shards_->num_units()) shards_->start_gather(values, unit + 1);
    if (is_locked) shards_->unlock_others(values, unit);
    shards_->finish_gather(values, unit);
    body(shards_->unit(unit).begin, shards_->unit(unit).end);
    is_locked ? shards_->lock_others(values, unit) : shards_->release_others(values, unit);
  }
}

Status CpuLearner::visit_weights(const RangeFunction& body) {
  visit(transformer_.trainable().values, is_whole_, true, body);
  return {};
}

Status CpuLearner::visit_average(const RangeFunction& body) {
  visit(optimizer_.average(), shards_ == nullptr, false, body);
  return {};
}

void CpuLearner::average_was_loaded() {
  if (shards_ == nullptr || optimizer_.average() == nullptr) return;
  for (int unit = 0; unit < shards_->num_units(); ++unit) {
    shards_->release_others(optimizer_.average(), unit);
  }
}

model::TrainingPass* CpuLearner::shared_pass(size_t index) {
  while (shared_passes_.size() <= index) {
    shared_passes_.push_back(std::make_unique<model::TrainingPass>(
        transformer_, backward_.gradient_checkpointing, scratch_));
  }
  return shared_passes_[index].get();
}

model::Gradients& CpuLearner::gradients_at(size_t depth) {
  while (layer_gradients_.size() <= depth) {
    layer_gradients_.push_back(new_gradients());
    AlignedBuffer& buffer = layer_gradients_.back()->buffer;
    use_small_pages({buffer.data(), static_cast<size_t>(buffer.size())});
  }
  return *layer_gradients_[depth];
}

// Ends with the head's weights still there: leave_head().
void CpuLearner::forward_by_layers(std::span<MicroBatch> batches, float temperature) {
  const int64_t num_layers = transformer_.config().num_layers;
  expect(WeightShards::kEmbedding);
  for (size_t i = 0; i < batches.size(); ++i) batches[i].pass = shared_pass(i);
  enter(WeightShards::kEmbedding);
  if (num_layers > 0) expect(shards_->layer(0));
  for (MicroBatch& batch : batches) {
    batch.pass->begin(batch.pack, temperature, batch.with_gradient);
  }
  leave(WeightShards::kEmbedding);
  for (int64_t i = 0; i < num_layers; ++i) {
    enter(shards_->layer(i));
    if (i + 1 < num_layers) {
      expect(shards_->layer(i + 1));
    } else {
      expect(shards_->tail());
      if (shards_->is_tied()) expect(WeightShards::kEmbedding);
    }
    for (MicroBatch& batch : batches) {
      communicator_.progress();
      batch.pass->forward_layer(i);
    }
    leave(shards_->layer(i));
  }
  enter(shards_->tail());
  if (shards_->is_tied()) enter(WeightShards::kEmbedding);
  for (MicroBatch& batch : batches) batch.pass->finish_forward();
}

// A unit's gradient: blocks meet in the tree as in sum_by_blocks(), then the ranks. This rank's
// slice of it is left in gradients_at(0).
void CpuLearner::sum_unit(int unit, size_t num_blocks,
                          const std::function<void(size_t, model::Gradients&)>& add_block,
                          UpdateStats& stats) {
  const Clock::time_point started = Clock::now();
  const auto values = [&](size_t depth) {
    return shards_->values(gradients_at(depth).buffer.data(), unit);
  };
  std::vector<int> levels;
  const auto meet = [&] {
    const std::span<float> right = values(levels.size() - 1), left = values(levels.size() - 2);
    kernels::add_in_place(left.data(), right.data(), static_cast<int64_t>(left.size()));
    release_pages(right);
    const int level = levels.back();
    levels.pop_back();
    levels.back() = std::max(levels.back(), level) + 1;
  };
  for (size_t block = 0; block < num_blocks; ++block) {
    communicator_.progress();
    add_block(block, gradients_at(levels.size()));
    levels.push_back(0);
    while (levels.size() >= 2 && levels[levels.size() - 2] == levels.back()) meet();
  }
  while (levels.size() >= 2) meet();
  stats.compute_seconds += seconds_since(started);
  const std::span<float> scratch = values(1);
  shards_->reduce_scatter(gradients_at(0).buffer.data(), unit, scratch);
  release_pages(scratch);
  shards_->release_others(gradients_at(0).buffer.data(), unit);
}

Status CpuLearner::sum_by_layers(std::span<const data::PackGroup> groups,
                                 const std::vector<bool>& needs_gradient, float temperature,
                                 const LossFunction& loss, UpdateStats& stats) {
  const std::vector<BlockRange> blocks = own_blocks(static_cast<int64_t>(groups.size()));
  std::vector<MicroBatch> batches;
  std::vector<BlockRange> ranges;  // of groups, of each batch
  for (size_t block = 0; block < blocks.size(); ++block) {
    for (int64_t first = blocks[block].first_group; first < blocks[block].end_group;) {
      const int64_t end = micro_batch_end(groups, needs_gradient, backward_.micro_batch_tokens,
                                          first, blocks[block].end_group, stats.num_rows);
      batches.push_back({.pack = data::make_pack(groups.subspan(static_cast<size_t>(first),
                                                                static_cast<size_t>(end - first))),
                         .block = block,
                         .with_gradient = needs_gradient[static_cast<size_t>(first)]});
      ranges.push_back({first, end});
      first = end;
    }
  }
  shard_weights();
  const Clock::time_point started = Clock::now();
  forward_by_layers(batches, temperature);
  Status status;
  std::vector<float> dlogprobs, dentropies;
  for (size_t i = 0; i < batches.size() && status.ok(); ++i) {
    MicroBatch& batch = batches[i];
    status = check_logprobs(batch.pass->logprobs(), num_updates());
    if (!status.ok()) break;
    dlogprobs.assign(batch.pack.targets.size(), 0);
    dentropies.assign(batch.pack.targets.size(), 0);
    status = loss(ranges[i].first_group, ranges[i].end_group - ranges[i].first_group,
                  batch.pass->logprobs(), batch.pass->entropies(), dlogprobs, dentropies);
    if (status.ok() && batch.with_gradient) {
      batch.has_gradient = batch.pass->begin_backward(dlogprobs, dentropies);
    }
  }
  stats.compute_seconds += seconds_since(started);
  status = comm::agree(communicator_, status);
  if (!status.ok()) {
    leave_head();
    return status;
  }
  const auto each_of = [&](size_t block, const auto& body) {
    for (const MicroBatch& batch : batches) {
      if (batch.block == block && batch.has_gradient) body(*batch.pass);
    }
  };
  const auto sum = [&](int unit, const auto& step) {
    sum_unit(
        unit, blocks.size(),
        [&](size_t block, model::Gradients& gradients) {
          each_of(block, [&](model::TrainingPass& pass) { step(pass, gradients); });
        },
        stats);
  };
  const int64_t num_layers = transformer_.config().num_layers;
  if (num_layers > 0) expect(shards_->layer(num_layers - 1));
  sum(shards_->tail(), [](model::TrainingPass& pass, model::Gradients& gradients) {
    pass.backward_head(gradients);
  });
  leave_head();
  for (int64_t i = num_layers - 1; i >= 0; --i) {
    enter(shards_->layer(i));
    if (i > 0) {
      expect(shards_->layer(i - 1));
    } else if (shards_->is_tied()) {
      expect(WeightShards::kEmbedding);
    }
    sum(shards_->layer(i), [i](model::TrainingPass& pass, model::Gradients& gradients) {
      pass.backward_layer(i, gradients);
    });
    leave(shards_->layer(i));
  }
  // The rows of the embedding are added when the head is done with the block (a tied one adds to
  // the same weights).
  if (shards_->is_tied()) enter(WeightShards::kEmbedding);
  sum_unit(
      WeightShards::kEmbedding, blocks.size(),
      [&](size_t block, model::Gradients& gradients) {
        if (shards_->is_tied()) {
          each_of(block, [&](model::TrainingPass& pass) { pass.backward_tied_head(gradients); });
        }
        each_of(block, [&](model::TrainingPass& pass) { pass.backward_embedding(gradients); });
      },
      stats);
  if (shards_->is_tied()) leave(WeightShards::kEmbedding);
  return {};
}

}  // namespace gradus::trainer
