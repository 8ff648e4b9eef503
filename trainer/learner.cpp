// SPDX-License-Identifier: Apache-2.0
#include "trainer/learner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>
#include <sstream>

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

// The blocks of groups that this rank sums, in order.
std::vector<BlockRange> Learner::own_blocks(int64_t num_groups) const {
  const int rank = communicator_.rank(), num_ranks = communicator_.size();
  if (!backward_.layout_invariant) return {blocks_of_rank(num_groups, rank, num_ranks)};
  const std::vector<BlockRange> blocks = block_ranges(num_groups, backward_.reduction_blocks);
  const BlockRange mine = blocks_of_rank(backward_.reduction_blocks, rank, num_ranks);
  return {blocks.begin() + mine.first_group, blocks.begin() + mine.end_group};
}

BlockRange Learner::groups_of_this_rank(int64_t num_groups) const {
  const std::vector<BlockRange> blocks = own_blocks(num_groups);
  return {blocks.front().first_group, blocks.back().end_group};
}

// Over the ranks, the result on all of them.
void Learner::reduce(std::span<float> values) {
  if (communicator_.size() == 1) return;
  if (free_gradients_.empty()) free_gradients_.push_back(new_gradients());
  const std::span<float> scratch(free_gradients_.back()->buffer.data(), values.size());
  if (backward_.layout_invariant) {
    comm::all_reduce_tree(communicator_, values, scratch, "sum of gradients");
  } else {
    comm::all_reduce_ring(communicator_, values, scratch, "sum of gradients");
  }
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
  non_finite_.reset();
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
  std::unique_ptr<model::Gradients> total = std::move(stack.back().sum);
  status = comm::agree(communicator_, status);
  if (status.ok()) {
    const std::span<float> values(total->buffer.data(), static_cast<size_t>(size));
    reduce(values);
    stats.grad_norm = gradient_norm(values.data());
    if (std::isfinite(stats.grad_norm)) {
      optimizer_.apply(values.data(), stats.grad_norm, learning_rate,
                       transformer_.trainable().values);
      transformer_.trainable_changed();
    } else {
      non_finite_ = locate_non_finite(groups, needs_gradient, temperature, loss, values.data());
      status = data_loss(
          "update {}: {} is not finite (group {}, response {} of the batch); the weights were not "
          "changed; lower the learning rate or look for broken rewards",
          num_updates() + 1, non_finite_->what, non_finite_->group, non_finite_->response);
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

// The first weight whose gradient is not finite, or nothing.
std::string Learner::non_finite_weight(const float* gradient) const {
  for (const model::ParameterPlace& place : transformer_.trainable().layout.places) {
    if (!std::isfinite(kernels::sum_of_squares(gradient + place.offset, place.size))) {
      return place.hf_name;
    }
  }
  return {};
}

// Looks at one group after the other, which computes the batch a second time: it is rare.
NonFinite Learner::locate_non_finite(std::span<const data::PackGroup> groups,
                                     const std::vector<bool>& needs_gradient, float temperature,
                                     const LossFunction& loss, const float* gradient) {
  const BlockRange mine = groups_of_this_rank(static_cast<int64_t>(groups.size()));
  std::string found;
  for (int64_t g = mine.first_group; g < mine.end_group && found.empty(); ++g) {
    const std::optional<NonFinite> here =
        locate_in_group(groups, g, needs_gradient[static_cast<size_t>(g)], temperature, loss);
    if (here) found = fmt::format("{} {} {}", here->group, here->response, here->what);
  }
  for (const std::string& text : communicator_.all_gather(found)) {
    if (text.empty()) continue;
    NonFinite result;
    std::istringstream stream(text);
    stream >> result.group >> result.response >> std::ws;
    std::getline(stream, result.what);
    return result;
  }
  return {-1, -1, fmt::format("the gradient of '{}'", non_finite_weight(gradient))};
}

std::optional<NonFinite> Learner::locate_in_group(std::span<const data::PackGroup> groups,
                                                  int64_t group, bool needs_gradient,
                                                  float temperature, const LossFunction& loss) {
  const data::PackGroup& one = groups[static_cast<size_t>(group)];
  const data::Pack pack = data::make_pack({&one, 1});
  std::vector<float> dlogprobs(pack.targets.size()), dentropies(pack.targets.size());
  pass_.forward(pack, temperature, needs_gradient);
  if (!loss(group, 1, pass_.logprobs(), pass_.entropies(), dlogprobs, dentropies).ok()) return {};
  size_t target = 0;
  for (size_t r = 0; r < one.responses.size(); ++r) {
    for (size_t t = 0; t < one.responses[r].size(); ++t, ++target) {
      const bool is_known =
          std::isfinite(pass_.logprobs()[target]) && std::isfinite(pass_.entropies()[target]);
      if (is_known && std::isfinite(dlogprobs[target]) && std::isfinite(dentropies[target]))
        continue;
      return NonFinite{
          group, static_cast<int64_t>(r),
          fmt::format("the {} of response token {}", is_known ? "loss" : "log-prob", t)};
    }
  }
  if (!needs_gradient) return {};
  // Log-probs and loss are sound: the backward pass of some response is not.
  const std::unique_ptr<model::Gradients> gradients = new_gradients();
  size_t begin = 0;
  for (size_t r = 0; r < one.responses.size(); ++r) {
    const size_t end = begin + one.responses[r].size();
    std::vector<float> alone(dlogprobs.size()), alone_entropies(dlogprobs.size());
    std::copy(dlogprobs.begin() + static_cast<std::ptrdiff_t>(begin),
              dlogprobs.begin() + static_cast<std::ptrdiff_t>(end),
              alone.begin() + static_cast<std::ptrdiff_t>(begin));
    std::copy(dentropies.begin() + static_cast<std::ptrdiff_t>(begin),
              dentropies.begin() + static_cast<std::ptrdiff_t>(end),
              alone_entropies.begin() + static_cast<std::ptrdiff_t>(begin));
    gradients->clear();
    pass_.forward(pack, temperature, true);
    pass_.backward(alone, alone_entropies, *gradients);
    gradients->finish(transformer_.layout(), transformer_.config().hidden_size);
    if (const std::string weight = non_finite_weight(gradients->buffer.data()); !weight.empty()) {
      return NonFinite{group, static_cast<int64_t>(r), fmt::format("the gradient of '{}'", weight)};
    }
    begin = end;
  }
  return {};
}

}  // namespace gradus::trainer
