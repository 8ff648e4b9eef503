// SPDX-License-Identifier: Apache-2.0
#include "trainer/device_learner.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "common/aligned_buffer.h"
#include "trainer/internal/non_finite.h"
#include "trainer/optimizer.h"

namespace gradus::trainer {
namespace {

// The optimizer's state on the host, in its one format.
Optimizer state_on_host(const model::ParameterLayout& layout, const OptimizerConfig& config) {
  return {layout, config, nullptr, whole_pieces(layout)};
}

}  // namespace

DeviceLearner::DeviceLearner(model::Transformer& host, std::unique_ptr<TrainingDevice> device,
                             const OptimizerConfig& optimizer, const BackwardConfig& backward,
                             comm::Communicator& communicator)
    : host_(host),
      device_(std::move(device)),
      optimizer_(optimizer),
      backward_(backward),
      communicator_(communicator) {
  GRADUS_CHECK(optimizer.optimizer == OptimizerKind::kAdamW && optimizer.ema_decay == 0 &&
                   host.adapter() == nullptr,
               "what the device does not do is refused where the configuration is read");
}

BlockRange DeviceLearner::groups_of_this_rank(int64_t num_groups) const {
  return blocks_of_rank(num_groups, communicator_.rank(), communicator_.size());
}

Status DeviceLearner::in_rounds(std::span<const MicroBatch> mine,
                                const std::function<Status(const MicroBatch*)>& forward,
                                const std::function<Status(const MicroBatch*)>& backward) {
  size_t num_rounds = mine.size();
  const bool is_lockstep = device_->is_lockstep();
  if (is_lockstep) {
    for (const std::string& count : communicator_.all_gather(std::to_string(mine.size()))) {
      num_rounds = std::max(num_rounds, static_cast<size_t>(std::stoull(count)));
    }
  }
  for (size_t round = 0; round < num_rounds; ++round) {
    const MicroBatch* const batch = round < mine.size() ? &mine[round] : nullptr;
    Status status = forward(batch);
    // What ends this rank ends all before they wait for it on the device.
    if (is_lockstep) status = comm::agree(communicator_, status);
    if (status.ok()) status = backward(batch);
    if (is_lockstep) status = comm::agree(communicator_, status);
    GRADUS_RETURN_IF_ERROR(status);
  }
  return {};
}

// This rank's share of the gradient, added to that on the device.
Status DeviceLearner::add_gradients(std::span<const data::PackGroup> groups,
                                    const std::vector<bool>& needs_gradient, float temperature,
                                    const LossFunction& loss, UpdateStats& stats) {
  const BlockRange mine = groups_of_this_rank(static_cast<int64_t>(groups.size()));
  std::vector<MicroBatch> batches;
  for (int64_t first = mine.first_group; first < mine.end_group; first = batches.back().end) {
    const int64_t end = micro_batch_end(groups, needs_gradient, backward_.micro_batch_tokens, first,
                                        mine.end_group, stats.num_rows);
    batches.push_back({first, end, needs_gradient[static_cast<size_t>(first)]});
  }
  data::Pack pack;  // from its forward to its backward
  std::vector<float> dlogprobs, dentropies;
  const auto forward = [&](const MicroBatch* batch) -> Status {
    if (batch == nullptr) return device_->idle_forward();
    const int64_t count = batch->end - batch->first;
    pack = data::make_pack(
        groups.subspan(static_cast<size_t>(batch->first), static_cast<size_t>(count)));
    GRADUS_RETURN_IF_ERROR(device_->forward(pack, temperature, batch->needs_gradient));
    GRADUS_RETURN_IF_ERROR(check_logprobs(device_->logprobs(), num_updates_));
    dlogprobs.assign(pack.targets.size(), 0);
    dentropies.assign(pack.targets.size(), 0);
    return loss(batch->first, count, device_->logprobs(), device_->entropies(), dlogprobs,
                dentropies);
  };
  return in_rounds(batches, forward, [&](const MicroBatch* batch) -> Status {
    if (batch != nullptr && batch->needs_gradient) return device_->backward(dlogprobs, dentropies);
    return device_->is_lockstep() ? device_->idle_backward() : Status();
  });
}

Result<UpdateStats> DeviceLearner::update(std::span<const data::PackGroup> groups,
                                          const std::vector<bool>& needs_gradient,
                                          float temperature, double learning_rate,
                                          const LossFunction& loss) {
  using Clock = std::chrono::steady_clock;
  UpdateStats stats;
  non_finite_.reset();
  const Clock::time_point started = Clock::now();
  Status status = comm::agree(communicator_, device_->ready_for_update());
  if (status.ok()) status = device_->clear_gradients();
  if (status.ok()) status = add_gradients(groups, needs_gradient, temperature, loss, stats);
  stats.compute_seconds = std::chrono::duration<double>(Clock::now() - started).count();
  status = comm::agree(communicator_, status);
  if (status.ok()) status = comm::agree(communicator_, device_->sum_gradients_over_ranks());
  if (status.ok()) {
    const Result<double> norm = device_->gradient_norm();
    status = comm::agree(communicator_, norm.status());
    if (status.ok()) stats.grad_norm = *norm;
  }
  if (status.ok() && !std::isfinite(stats.grad_norm)) {
    status = find_non_finite(groups, needs_gradient, temperature, loss);
  } else if (status.ok()) {
    const double largest = optimizer_.max_grad_norm;
    const bool is_clipped = largest > 0 && stats.grad_norm > largest;
    status = device_->apply({.learning_rate = learning_rate,
                             .beta1 = optimizer_.adam_beta1,
                             .beta2 = optimizer_.adam_beta2,
                             .eps = optimizer_.adam_eps,
                             .weight_decay = optimizer_.weight_decay,
                             .step = num_updates_ + 1,
                             .scale = is_clipped ? largest / stats.grad_norm : 1.0});
    status = comm::agree(communicator_, status);
    is_host_current_ = false;
    if (status.ok()) ++num_updates_;
  }
  device_->release_activations();
  if (!status.ok()) return status;
  return stats;
}

Result<std::string> DeviceLearner::broken_weight() const {
  AlignedBuffer gradients(host_.layout().size);
  GRADUS_RETURN_IF_ERROR(device_->gradients_to_host(gradients.data()));
  return non_finite_weight(host_.layout(), gradients.data());
}

// Sets non_finite_; the status says so, or what went wrong in the search.
Status DeviceLearner::find_non_finite(std::span<const data::PackGroup> groups,
                                      const std::vector<bool>& needs_gradient, float temperature,
                                      const LossFunction& loss) {
  const Result<std::string> weight = broken_weight();
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, weight.status()));
  const PackPass pass = {
      .forward =
          [&](const data::Pack& pack, float at_temperature, bool keep_for_backward) {
            return device_->forward(pack, at_temperature, keep_for_backward);
          },
      .logprobs = [&] { return device_->logprobs(); },
      .entropies = [&] { return device_->entropies(); },
      .broken_weight = [&](std::span<const float> dlogprobs,
                           std::span<const float> dentropies) -> Result<std::string> {
        GRADUS_RETURN_IF_ERROR(device_->clear_gradients());
        GRADUS_RETURN_IF_ERROR(device_->backward(dlogprobs, dentropies));
        return broken_weight();
      }};
  const BlockRange mine = groups_of_this_rank(static_cast<int64_t>(groups.size()));
  NonFinite found = {-1, -1, fmt::format("the gradient of '{}'", *weight)};
  bool was_searched = false;
  const Status searched = device_->alone([&]() -> Status {
    was_searched = true;
    Result<NonFinite> located = locate_non_finite(groups, mine, needs_gradient, temperature, loss,
                                                  *weight, pass, communicator_);
    GRADUS_RETURN_IF_ERROR(located.status());
    found = std::move(*located);
    return {};
  });
  if (was_searched) {
    GRADUS_RETURN_IF_ERROR(searched);
  } else {
    found.what += fmt::format(" (where it began was not looked for: {})", searched.message());
  }
  non_finite_ = std::move(found);
  return not_finite_status(*non_finite_, num_updates_);
}

Status DeviceLearner::forward(std::span<const data::PackGroup> groups, float temperature,
                              const TargetFunction& consume) {
  const BlockRange mine = groups_of_this_rank(static_cast<int64_t>(groups.size()));
  std::vector<int64_t> rows;
  for (int64_t g = mine.first_group; g < mine.end_group; ++g) {
    rows.push_back(data::num_pack_rows(groups[static_cast<size_t>(g)]));
  }
  const std::vector<int64_t> cuts = data::cut_micro_batches(rows, backward_.micro_batch_tokens);
  std::vector<MicroBatch> batches;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    batches.push_back({mine.first_group + cuts[i], mine.first_group + cuts[i + 1]});
  }
  Status status = comm::agree(communicator_, device_->ready_for_update());
  if (status.ok()) {
    status = in_rounds(
        batches,
        [&](const MicroBatch* batch) -> Status {
          if (batch == nullptr) return device_->idle_forward();
          const int64_t count = batch->end - batch->first;
          GRADUS_RETURN_IF_ERROR(
              device_->forward(data::make_pack(groups.subspan(static_cast<size_t>(batch->first),
                                                              static_cast<size_t>(count))),
                               temperature, false));
          consume(batch->first, count, device_->logprobs(), device_->entropies());
          return {};
        },
        [](const MicroBatch*) { return Status(); });
  }
  device_->release_activations();
  return status;
}

Status DeviceLearner::whole_weights() {
  if (is_host_current_) return {};
  GRADUS_RETURN_IF_ERROR(device_->download(host_.parameters()));
  host_.trainable_changed();
  is_host_current_ = true;
  return {};
}

Status DeviceLearner::visit_weights(const RangeFunction& body) {
  GRADUS_RETURN_IF_ERROR(whole_weights());
  body(0, host_.layout().size);
  return {};
}

Status DeviceLearner::visit_average(const RangeFunction&) {
  GRADUS_CHECK(false, "no average is kept on a device");
}

Status DeviceLearner::save(records::StateSnapshot& snapshot) const {
  Optimizer state = state_on_host(host_.layout(), optimizer_);
  {
    AlignedBuffer m(host_.layout().size), v(host_.layout().size);
    GRADUS_RETURN_IF_ERROR(device_->moments_to_host(m.data(), v.data()));
    state.set_moments(m.data(), v.data(), num_updates_);
  }
  state.save(snapshot, communicator_.rank(), communicator_.size());
  return {};
}

Status DeviceLearner::load(const records::StateShards& shards) {
  Optimizer state = state_on_host(host_.layout(), optimizer_);
  GRADUS_RETURN_IF_ERROR(state.load(shards));
  AlignedBuffer m(host_.layout().size), v(host_.layout().size);
  state.get_moments(m.data(), v.data());
  GRADUS_RETURN_IF_ERROR(device_->moments_from_host(m.data(), v.data()));
  GRADUS_RETURN_IF_ERROR(device_->upload(host_.parameters()));
  num_updates_ = state.num_updates();
  is_host_current_ = true;
  return {};
}

}  // namespace gradus::trainer
