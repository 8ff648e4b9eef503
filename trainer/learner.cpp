// SPDX-License-Identifier: Apache-2.0
#include "trainer/learner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>
#include <sstream>

#include "common/parallel.h"
#include "common/residency.h"
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

// Over the ranks, the result on all of them; of slices, those of this rank.
void Learner::reduce(std::span<float> values) {
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

// As many neighbours from `first` on as fit that all need a gradient or all do not.
int64_t Learner::micro_batch_end(std::span<const data::PackGroup> groups,
                                 const std::vector<bool>& needs_gradient, int64_t first,
                                 int64_t end, int64_t& num_rows) const {
  const bool with_gradient = needs_gradient[static_cast<size_t>(first)];
  int64_t at = first, rows = 0;
  while (at < end && needs_gradient[static_cast<size_t>(at)] == with_gradient) {
    const int64_t group_rows = data::num_pack_rows(groups[static_cast<size_t>(at)]);
    if (at > first && rows + group_rows > backward_.micro_batch_tokens) break;
    rows += group_rows;
    ++at;
  }
  num_rows += rows;
  return at;
}

Status Learner::check_logprobs(std::span<const float> logprobs) const {
  for (const float logprob : logprobs) {
    // Comparisons in a loss would turn it into a gradient of 0.
    if (!std::isnan(logprob)) continue;
    return data_loss(
        "update {}: a log-prob of the model is not a number: its weights have left the range of "
        "floats; the update was not made; lower the learning rate",
        num_updates() + 1);
  }
  return {};
}

Status Learner::accumulate(std::span<const data::PackGroup> groups,
                           const std::vector<bool>& needs_gradient, BlockRange block,
                           float temperature, const LossFunction& loss, model::Gradients& gradients,
                           UpdateStats& stats) {
  std::vector<float> dlogprobs, dentropies;
  int64_t first = block.first_group;
  while (first < block.end_group) {
    const bool with_gradient = needs_gradient[static_cast<size_t>(first)];
    const int64_t end =
        micro_batch_end(groups, needs_gradient, first, block.end_group, stats.num_rows);
    const data::Pack pack = data::make_pack(
        groups.subspan(static_cast<size_t>(first), static_cast<size_t>(end - first)));
    pass_.forward(pack, temperature, with_gradient);
    GRADUS_RETURN_IF_ERROR(check_logprobs(pass_.logprobs()));
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
Status Learner::sum_by_blocks(std::span<const data::PackGroup> groups,
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

Result<UpdateStats> Learner::update(std::span<const data::PackGroup> groups,
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
      whole_weights();
      non_finite_ =
          locate_non_finite(groups, needs_gradient, temperature, loss, non_finite_weight(squares));
      status = data_loss(
          "update {}: {} is not finite (group {}, response {} of the batch); the weights were not "
          "changed; lower the learning rate or look for broken rewards",
          num_updates() + 1, non_finite_->what, non_finite_->group, non_finite_->response);
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

void Learner::forward(std::span<const data::PackGroup> groups, float temperature,
                      const std::function<void(int64_t, int64_t, std::span<const float>,
                                               std::span<const float>)>& consume) {
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
  if (is_whole_) return;
  forward_by_layers(by_layers, temperature);
  leave_head();
  for (size_t i = 0; i < by_layers.size(); ++i) give(i, *by_layers[i].pass);
}

// Of every weight, by place.
std::vector<double> Learner::squares_by_weight(const float* gradient) const {
  if (shards_ != nullptr) return shards_->sums_of_squares(gradient);
  std::vector<double> squares;
  for (const model::ParameterPlace& place : transformer_.trainable().layout.places) {
    squares.push_back(kernels::sum_of_squares(gradient + place.offset, place.size));
  }
  return squares;
}

// Of slices on all ranks only what each rank holds is exchanged, and the weights are put together.
Status Learner::with_average(const std::function<Status()>& body) {
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
    whole_weights();
    transformer_.trainable_changed();
  };
  exchange();
  const Status status = body();
  exchange();
  return status;
}

// The first weight whose gradient is not finite, or nothing.
std::string Learner::non_finite_weight(std::span<const double> squares) const {
  const std::vector<model::ParameterPlace>& places = transformer_.trainable().layout.places;
  for (size_t i = 0; i < places.size(); ++i) {
    if (!std::isfinite(squares[i])) return places[i].hf_name;
  }
  return {};
}

// Looks at one group after the other, which computes the batch a second time: it is rare.
NonFinite Learner::locate_non_finite(std::span<const data::PackGroup> groups,
                                     const std::vector<bool>& needs_gradient, float temperature,
                                     const LossFunction& loss, const std::string& weight) {
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
  return {-1, -1, fmt::format("the gradient of '{}'", weight)};
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
    const int64_t num_targets = data::num_pack_targets(one, r);
    for (int64_t t = 0; t < num_targets; ++t, ++target) {
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
    const size_t end = begin + static_cast<size_t>(data::num_pack_targets(one, r));
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
    std::vector<double> squares;
    for (const model::ParameterPlace& place : transformer_.trainable().layout.places) {
      squares.push_back(
          kernels::sum_of_squares(gradients->buffer.data() + place.offset, place.size));
    }
    if (const std::string weight = non_finite_weight(squares); !weight.empty()) {
      return NonFinite{group, static_cast<int64_t>(r), fmt::format("the gradient of '{}'", weight)};
    }
    begin = end;
  }
  return {};
}

}  // namespace gradus::trainer
