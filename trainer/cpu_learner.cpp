// SPDX-License-Identifier: Apache-2.0
#include "trainer/cpu_learner.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "common/parallel.h"
#include "common/residency.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "trainer/internal/non_finite.h"

namespace gradus::trainer {

CpuLearner::CpuLearner(model::Transformer& transformer, const OptimizerConfig& optimizer,
                       const BackwardConfig& backward, comm::Communicator& communicator)
    : transformer_(transformer),
      backward_(backward),
      communicator_(communicator),
      shards_(backward.zero_stage > 0 && communicator.size() > 1
                  ? std::make_unique<WeightShards>(transformer.layout(), communicator)
                  : nullptr),
      optimizer_(transformer.trainable().layout, optimizer, transformer.trainable().values,
                 shards_ ? shards_->own_pieces() : whole_pieces(transformer.trainable().layout)),
      pass_(transformer, backward.gradient_checkpointing),
      scratch_(std::make_shared<model::TrainingScratch>()) {
  GRADUS_CHECK(shards_ == nullptr || transformer.adapter() == nullptr,
               "an adapter is not shared out over ranks");
  if (holds_slices()) {
    use_small_pages({transformer.parameters(), static_cast<size_t>(transformer.layout().size)});
  }
}

std::unique_ptr<model::Gradients> CpuLearner::new_gradients() const {
  return transformer_.adapter() != nullptr
             ? std::make_unique<model::Gradients>(*transformer_.adapter())
             : std::make_unique<model::Gradients>(transformer_.layout());
}

// The blocks of groups that this rank sums, in order.
std::vector<BlockRange> CpuLearner::own_blocks(int64_t num_groups) const {
  const int rank = communicator_.rank(), num_ranks = communicator_.size();
  if (!backward_.layout_invariant) return {blocks_of_rank(num_groups, rank, num_ranks)};
  const std::vector<BlockRange> blocks = block_ranges(num_groups, backward_.reduction_blocks);
  const BlockRange mine = blocks_of_rank(backward_.reduction_blocks, rank, num_ranks);
  return {blocks.begin() + mine.first_group, blocks.begin() + mine.end_group};
}

BlockRange CpuLearner::groups_of_this_rank(int64_t num_groups) const {
  const std::vector<BlockRange> blocks = own_blocks(num_groups);
  return {blocks.front().first_group, blocks.back().end_group};
}

// Over the ranks, the result on all of them; of slices, those of this rank.
void CpuLearner::reduce(std::span<float> values) {
  if (communicator_.size() == 1) return;
  if (free_gradients_.empty()) free_gradients_.push_back(new_gradients());
  const std::span<float> scratch(free_gradients_.back()->buffer.data(), values.size());
  if (shards_ != nullptr) {
    for (int unit = 0; unit < shards_->num_units(); ++unit) {
      shards_->reduce_scatter(values.data(), unit, scratch);
    }
  } else if (backward_.layout_invariant) {
    comm::all_reduce_tree(communicator_, values, scratch, "sum of gradients");
  } else {
    comm::all_reduce_ring(communicator_, values, scratch, "sum of gradients");
  }
}

Status CpuLearner::accumulate(std::span<const data::PackGroup> groups,
                              const std::vector<bool>& needs_gradient, BlockRange block,
                              float temperature, const LossFunction& loss,
                              model::Gradients& gradients, UpdateStats& stats) {
  std::vector<float> dlogprobs, dentropies;
  int64_t first = block.first_group;
  while (first < block.end_group) {
    const bool with_gradient = needs_gradient[static_cast<size_t>(first)];
    const int64_t end = micro_batch_end(groups, needs_gradient, backward_.micro_batch_tokens, first,
                                        block.end_group, stats.num_rows);
    const data::Pack pack = data::make_pack(
        groups.subspan(static_cast<size_t>(first), static_cast<size_t>(end - first)));
    pass_.forward(pack, temperature, with_gradient);
    GRADUS_RETURN_IF_ERROR(check_logprobs(pass_.logprobs(), num_updates()));
    dlogprobs.assign(pack.targets.size(), 0);
    dentropies.assign(pack.targets.size(), 0);
    GRADUS_RETURN_IF_ERROR(
        loss(first, end - first, pass_.logprobs(), pass_.entropies(), dlogprobs, dentropies));
    if (with_gradient) pass_.backward(dlogprobs, dentropies, gradients);
    first = end;
  }
  gradients.finish(transformer_.layout(), transformer_.config().hidden_size);
  return {};
}

// The sum of this rank's blocks, all weights at a time, into total_.
Status CpuLearner::sum_by_blocks(std::span<const data::PackGroup> groups,
                                 const std::vector<bool>& needs_gradient, float temperature,
                                 const LossFunction& loss, UpdateStats& stats) {
  // Sums of 2^level neighbouring blocks; equal levels meet at once, so at most log2(blocks) + 1 are
  // held.
  struct Partial {
    int level;
    std::unique_ptr<model::Gradients> sum;
  };
  std::vector<Partial> stack;
  const int64_t size = transformer_.trainable().layout.size;
  const auto meet = [&] {
    Partial right = std::move(stack.back());
    stack.pop_back();
    kernels::add_in_place(stack.back().sum->buffer.data(), right.sum->buffer.data(), size);
    stack.back().level = std::max(stack.back().level, right.level) + 1;
    free_gradients_.push_back(std::move(right.sum));
  };
  Status status;
  const auto started = std::chrono::steady_clock::now();
  for (const BlockRange& block : own_blocks(static_cast<int64_t>(groups.size()))) {
    if (!status.ok()) break;
    if (free_gradients_.empty()) {
      free_gradients_.push_back(new_gradients());
    }
    std::unique_ptr<model::Gradients> gradients = std::move(free_gradients_.back());
    free_gradients_.pop_back();
    gradients->clear();
    status = accumulate(groups, needs_gradient, block, temperature, loss, *gradients, stats);
    stack.push_back({0, std::move(gradients)});
    while (stack.size() >= 2 && stack[stack.size() - 2].level == stack.back().level) meet();
  }
  while (stack.size() >= 2) meet();
  stats.compute_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  total_ = std::move(stack.back().sum);
  status = comm::agree(communicator_, status);
  if (status.ok()) reduce({total_->buffer.data(), static_cast<size_t>(size)});
  return status;
}

Result<UpdateStats> CpuLearner::update(std::span<const data::PackGroup> groups,
                                       const std::vector<bool>& needs_gradient, float temperature,
                                       double learning_rate, const LossFunction& loss) {
  UpdateStats stats;
  non_finite_.reset();
  const bool is_by_layers = shards_ != nullptr && backward_.zero_stage >= 2;
  Status status = is_by_layers ? sum_by_layers(groups, needs_gradient, temperature, loss, stats)
                               : sum_by_blocks(groups, needs_gradient, temperature, loss, stats);
  const float* gradient = is_by_layers ? gradients_at(0).buffer.data() : total_->buffer.data();
  if (status.ok()) {
    const std::vector<double> squares = squares_by_weight(gradient);
    double sum = 0;
    for (const double of_weight : squares) sum += of_weight;
    stats.grad_norm = std::sqrt(sum);
    if (std::isfinite(stats.grad_norm)) {
      optimizer_.apply(gradient, stats.grad_norm, learning_rate, transformer_.trainable().values);
      if (shards_ != nullptr && !holds_slices()) shards_->gather(transformer_.parameters());
      transformer_.trainable_changed();
    } else {
      gather_weights();
      non_finite_ = find_non_finite(groups, needs_gradient, temperature, loss,
                                    non_finite_weight(transformer_.trainable().layout, squares));
      status = not_finite_status(*non_finite_, num_updates());
    }
  }
  if (is_by_layers) {
    AlignedBuffer& buffer = gradients_at(0).buffer;
    release_pages({buffer.data(), static_cast<size_t>(buffer.size())});
  } else {
    free_gradients_.push_back(std::move(total_));
  }
  if (!status.ok()) return status;
  return stats;
}

Status CpuLearner::forward(std::span<const data::PackGroup> groups, float temperature,
                           const TargetFunction& consume) {
  const BlockRange mine = groups_of_this_rank(static_cast<int64_t>(groups.size()));
  std::vector<MicroBatch> by_layers;
  std::vector<int64_t> rows;
  for (int64_t g = mine.first_group; g < mine.end_group; ++g) {
    rows.push_back(data::num_pack_rows(groups[static_cast<size_t>(g)]));
  }
  const std::vector<int64_t> cuts = data::cut_micro_batches(rows, backward_.micro_batch_tokens);
  const auto pack_of = [&](size_t i) {
    return data::make_pack(groups.subspan(static_cast<size_t>(mine.first_group + cuts[i]),
                                          static_cast<size_t>(cuts[i + 1] - cuts[i])));
  };
  const auto give = [&](size_t i, const model::TrainingPass& pass) {
    consume(mine.first_group + cuts[i], cuts[i + 1] - cuts[i], pass.logprobs(), pass.entropies());
  };
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    if (!is_whole_) {
      by_layers.push_back({.pack = pack_of(i)});
      continue;
    }
    const data::Pack pack = pack_of(i);
    pass_.forward(pack, temperature, false);
    give(i, pass_);
  }
  if (is_whole_) return {};
  forward_by_layers(by_layers, temperature);
  leave_head();
  for (size_t i = 0; i < by_layers.size(); ++i) give(i, *by_layers[i].pass);
  return {};
}

// Of every weight, by place.
std::vector<double> CpuLearner::squares_by_weight(const float* gradient) const {
  if (shards_ != nullptr) return shards_->sums_of_squares(gradient);
  std::vector<double> squares;
  for (const model::ParameterPlace& place : transformer_.trainable().layout.places) {
    squares.push_back(kernels::sum_of_squares(gradient + place.offset, place.size));
  }
  return squares;
}

// Of slices on all ranks only what each rank holds is exchanged, and the weights are put together.
Status CpuLearner::with_average(const std::function<Status()>& body) {
  float* average = optimizer_.average();
  if (average == nullptr) return body();
  const auto exchange = [&] {
    const model::TrainableWeights weights = transformer_.trainable();
    for (const WeightPiece& piece : optimizer_.pieces()) {
      const int64_t offset = weights.layout.places[piece.place].offset + piece.first;
      parallel_for(piece.end - piece.first, 1 << 16, [&](int64_t begin, int64_t end) {
        std::swap_ranges(weights.values + offset + begin, weights.values + offset + end,
                         average + offset + begin);
      });
    }
    is_whole_ = is_whole_ && shards_ == nullptr;
    gather_weights();
    transformer_.trainable_changed();
  };
  exchange();
  const Status status = body();
  exchange();
  return status;
}

NonFinite CpuLearner::find_non_finite(std::span<const data::PackGroup> groups,
                                      const std::vector<bool>& needs_gradient, float temperature,
                                      const LossFunction& loss, const std::string& weight) {
  const std::unique_ptr<model::Gradients> gradients = new_gradients();
  const PackPass pass = {
      .forward = [&](const data::Pack& pack, float at_temperature,
                     bool keep_for_backward) -> Status {
        pass_.forward(pack, at_temperature, keep_for_backward);
        return {};
      },
      .logprobs = [&] { return pass_.logprobs(); },
      .entropies = [&] { return pass_.entropies(); },
      .broken_weight = [&](std::span<const float> dlogprobs,
                           std::span<const float> dentropies) -> Result<std::string> {
        gradients->clear();
        pass_.backward(dlogprobs, dentropies, *gradients);
        gradients->finish(transformer_.layout(), transformer_.config().hidden_size);
        return non_finite_weight(transformer_.trainable().layout, gradients->buffer.data());
      }};
  const BlockRange mine = groups_of_this_rank(static_cast<int64_t>(groups.size()));
  return locate_non_finite(groups, mine, needs_gradient, temperature, loss, weight, pass,
                           communicator_)
      .value();
}

Status CpuLearner::save(records::StateSnapshot& snapshot) const {
  optimizer_.save(snapshot, communicator_.rank(), communicator_.size());
  return {};
}

Result<uint64_t> CpuLearner::weights_hash() {
  gather_weights();
  return model::hash_parameters(transformer_.parameters(), transformer_.layout().size);
}

Status CpuLearner::whole_weights() {
  gather_weights();
  return {};
}

}  // namespace gradus::trainer
