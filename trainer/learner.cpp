// SPDX-License-Identifier: Apache-2.0
#include "trainer/learner.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/parallel.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"

namespace gradus::trainer {

double learning_rate_at(const OptimizerConfig& config, int64_t step, int64_t num_steps) {
  if (step < config.warmup_steps) {
    return config.learning_rate * static_cast<double>(step + 1) /
           static_cast<double>(config.warmup_steps);
  }
  const double length = static_cast<double>(std::max<int64_t>(1, num_steps - config.warmup_steps));
  const double progress = std::min(1.0, static_cast<double>(step - config.warmup_steps) / length);
  double fraction = 1.0;
  switch (config.lr_schedule) {
    case LrSchedule::kConstant:
      return config.learning_rate;
    case LrSchedule::kLinear:
      fraction = 1.0 - progress;
      break;
    case LrSchedule::kCosine:
      fraction = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
      break;
  }
  return config.learning_rate * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * fraction);
}

std::vector<BlockRange> block_ranges(int64_t num_groups, int64_t num_blocks) {
  std::vector<BlockRange> blocks;
  for (int64_t b = 0; b < num_blocks; ++b) {
    blocks.push_back({b * num_groups / num_blocks, (b + 1) * num_groups / num_blocks});
  }
  return blocks;
}

BlockRange blocks_of_rank(int64_t num_blocks, int rank, int num_ranks) {
  return {num_blocks * rank / num_ranks, num_blocks * (rank + 1) / num_ranks};
}

Learner::Learner(model::Transformer& transformer, const OptimizerConfig& optimizer,
                 const BackwardConfig& backward, comm::Communicator& communicator)
    : transformer_(transformer),
      optimizer_(transformer.trainable().layout, optimizer, transformer.trainable().values),
      backward_(backward),
      communicator_(communicator),
      pass_(transformer, backward.gradient_checkpointing) {}

std::unique_ptr<model::Gradients> Learner::new_gradients() const {
  return transformer_.adapter() != nullptr
             ? std::make_unique<model::Gradients>(*transformer_.adapter())
             : std::make_unique<model::Gradients>(transformer_.layout());
}

BlockRange Learner::groups_of_this_rank(int64_t num_groups) const {
  const std::vector<BlockRange> blocks = block_ranges(num_groups, backward_.reduction_blocks);
  const BlockRange mine =
      blocks_of_rank(backward_.reduction_blocks, communicator_.rank(), communicator_.size());
  return {blocks[static_cast<size_t>(mine.first_group)].first_group,
          blocks[static_cast<size_t>(mine.end_group - 1)].end_group};
}

Status Learner::accumulate(std::span<const data::PackGroup> groups,
                           const std::vector<bool>& needs_gradient, BlockRange block,
                           float temperature, const LossFunction& loss, model::Gradients& gradients,
                           UpdateStats& stats) {
  std::vector<float> dlogprobs, dentropies;
  int64_t first = block.first_group;
  while (first < block.end_group) {
    // As many neighbours as fit that all need a gradient or all do not.
    const bool with_gradient = needs_gradient[static_cast<size_t>(first)];
    int64_t end = first, rows = 0;
    while (end < block.end_group && needs_gradient[static_cast<size_t>(end)] == with_gradient) {
      const int64_t group_rows = data::num_pack_rows(groups[static_cast<size_t>(end)]);
      if (end > first && rows + group_rows > backward_.micro_batch_tokens) break;
      rows += group_rows;
      ++end;
    }
    const data::Pack pack = data::make_pack(
        groups.subspan(static_cast<size_t>(first), static_cast<size_t>(end - first)));
    pass_.forward(pack, temperature, with_gradient);
    for (const float logprob : pass_.logprobs()) {
      // Comparisons in a loss would turn it into a gradient of 0.
      if (!std::isnan(logprob)) continue;
      return data_loss(
          "update {}: a log-prob of the model is not a number: its weights have left the range of "
          "floats; the update was not made; lower the learning rate",
          num_updates() + 1);
    }
    dlogprobs.assign(pack.targets.size(), 0);
    dentropies.assign(pack.targets.size(), 0);
    GRADUS_RETURN_IF_ERROR(
        loss(first, end - first, pass_.logprobs(), pass_.entropies(), dlogprobs, dentropies));
    if (with_gradient) pass_.backward(dlogprobs, dentropies, gradients);
    stats.num_rows += rows;
    first = end;
  }
  gradients.finish(transformer_.layout(), transformer_.config().hidden_size);
  return {};
}

Result<UpdateStats> Learner::update(std::span<const data::PackGroup> groups,
                                    const std::vector<bool>& needs_gradient, float temperature,
                                    double learning_rate, const LossFunction& loss) {
  UpdateStats stats;
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
  const std::vector<BlockRange> blocks =
      block_ranges(static_cast<int64_t>(groups.size()), backward_.reduction_blocks);
  const BlockRange mine =
      blocks_of_rank(backward_.reduction_blocks, communicator_.rank(), communicator_.size());
  Status status;
  for (int64_t b = mine.first_group; b < mine.end_group && status.ok(); ++b) {
    if (free_gradients_.empty()) {
      free_gradients_.push_back(new_gradients());
    }
    std::unique_ptr<model::Gradients> gradients = std::move(free_gradients_.back());
    free_gradients_.pop_back();
    gradients->clear();
    status = accumulate(groups, needs_gradient, blocks[static_cast<size_t>(b)], temperature, loss,
                        *gradients, stats);
    stack.push_back({0, std::move(gradients)});
    while (stack.size() >= 2 && stack[stack.size() - 2].level == stack.back().level) meet();
  }
  while (stack.size() >= 2) meet();
  std::unique_ptr<model::Gradients> total = std::move(stack.back().sum);
  status = comm::agree(communicator_, status);
  if (status.ok()) {
    const std::span<float> values(total->buffer.data(), static_cast<size_t>(size));
    if (communicator_.size() > 1) {
      if (free_gradients_.empty()) {
        free_gradients_.push_back(new_gradients());
      }
      comm::all_reduce_tree(communicator_, values,
                            {free_gradients_.back()->buffer.data(), static_cast<size_t>(size)},
                            "sum of gradients");
    }
    stats.grad_norm = gradient_norm(values.data());
    if (std::isfinite(stats.grad_norm)) {
      optimizer_.apply(values.data(), stats.grad_norm, learning_rate,
                       transformer_.trainable().values);
      transformer_.trainable_changed();
    } else {
      status = data_loss(
          "update {}: the gradient's norm is {}; the weights were not changed; lower the learning "
          "rate or "
          "look for broken rewards in the rollouts of this step",
          num_updates() + 1, stats.grad_norm);
    }
  }
  free_gradients_.push_back(std::move(total));
  if (!status.ok()) return status;
  return stats;
}

void Learner::forward(std::span<const data::PackGroup> groups, float temperature,
                      const std::function<void(int64_t, int64_t, std::span<const float>,
                                               std::span<const float>)>& consume) {
  const BlockRange mine = groups_of_this_rank(static_cast<int64_t>(groups.size()));
  std::vector<int64_t> rows;
  for (int64_t g = mine.first_group; g < mine.end_group; ++g) {
    rows.push_back(data::num_pack_rows(groups[static_cast<size_t>(g)]));
  }
  const std::vector<int64_t> cuts = data::cut_micro_batches(rows, backward_.micro_batch_tokens);
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const int64_t first = mine.first_group + cuts[i], count = cuts[i + 1] - cuts[i];
    const data::Pack pack =
        data::make_pack(groups.subspan(static_cast<size_t>(first), static_cast<size_t>(count)));
    pass_.forward(pack, temperature, false);
    consume(first, count, pass_.logprobs(), pass_.entropies());
  }
}

double Learner::gradient_norm(const float* gradient) const {
  double sum = 0;
  for (const model::ParameterPlace& place : transformer_.trainable().layout.places) {
    sum += kernels::sum_of_squares(gradient + place.offset, place.size);
  }
  return std::sqrt(sum);
}

Status Learner::with_average(const std::function<Status()>& body) {
  float* average = optimizer_.average();
  const auto exchange = [&] {
    if (average == nullptr) return;
    const model::TrainableWeights weights = transformer_.trainable();
    parallel_for(weights.layout.size, 1 << 16, [&](int64_t begin, int64_t end) {
      std::swap_ranges(weights.values + begin, weights.values + end, average + begin);
    });
    transformer_.trainable_changed();
  };
  exchange();
  const Status status = body();
  exchange();
  return status;
}

}  // namespace gradus::trainer
