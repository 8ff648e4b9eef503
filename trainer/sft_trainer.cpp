// SPDX-License-Identifier: Apache-2.0
#include "trainer/sft_trainer.h"

#include "trainer/checkpoint_saver.h"
#include "trainer/cpu_learner.h"

namespace gradus::trainer {
namespace {

ComputeParts take_parts(SftSetup& setup, Policy& policy, comm::Communicator& communicator) {
  ComputeParts parts = std::move(setup.parts);
  if (parts.learner == nullptr) {
    parts.learner = std::make_unique<CpuLearner>(*policy.transformer, setup.sft.optimizer,
                                                 setup.sft.backward, communicator);
  }
  return parts;
}

}  // namespace

SftTrainer::SftTrainer(SftSetup setup, Policy& policy, comm::Communicator& communicator,
                       RunRecords records, records::RunDisplay& display)
    : setup_(std::move(setup)),
      policy_(policy),
      communicator_(communicator),
      records_(records),
      display_(display),
      parts_(take_parts(setup_, policy, communicator)),
      learner_(*parts_.learner),
      order_(static_cast<int64_t>(setup_.examples.size()), setup_.data_seed, setup_.shuffle) {}

Status SftTrainer::resume(const std::string& checkpoint_folder) {
  return comm::agree(communicator_,
                     load_checkpoint(checkpoint_folder, policy_, learner_, position_));
}

Status SftTrainer::run() {
  if (position_.step >= setup_.sft.num_steps) {
    display_.print(
        fmt::format("the run has made all of its {} steps; raise sft.num_steps to train on",
                    setup_.sft.num_steps));
  }
  if (setup_.eval.before_training && position_.step == 0 && !setup_.held_out.empty()) {
    Metrics metrics;
    const Result<double> loss = held_out_loss();
    GRADUS_RETURN_IF_ERROR(loss.status());
    metrics.set("val/loss", *loss);
    for (const auto& [name, seconds] : clock_.lap()) metrics.set(name, seconds);
    if (records_.metrics != nullptr) {
      GRADUS_RETURN_IF_ERROR(records_.metrics->write(0, metrics.values()));
    }
  }
  return run_steps(
      setup_.sft.num_steps, setup_.run.checkpoint_every, position_, communicator_, display_,
      [this] { return step(); }, [this] { return save(); }, records_.saver, clock_);
}

Status SftTrainer::step() {
  std::vector<data::PackGroup> groups;
  double num_targets = 0, num_tokens = 0;
  std::string before = clock_.enter("timing_s/update_actor");
  for (int64_t i = 0; i < setup_.sft.batch_rows; ++i) {
    const SftExample& example =
        setup_.examples[static_cast<size_t>(order_.row_at(position_.data_position++))];
    groups.push_back({example.prompt, {example.response}});
    num_targets += static_cast<double>(example.response.size());
    num_tokens += static_cast<double>(example.prompt.size() + example.response.size());
  }
  const double learning_rate =
      learning_rate_at(setup_.sft.optimizer, learner_.num_updates(), setup_.sft.num_steps);
  double loss_sum = 0, entropy_sum = 0;
  const float slope = static_cast<float>(-1.0 / num_targets);
  Result<UpdateStats> stats = learner_.update(
      groups, std::vector<bool>(groups.size(), true), 1.0f, learning_rate,
      [&](int64_t, int64_t, std::span<const float> logprobs, std::span<const float> entropies,
          std::span<float> dlogprobs, std::span<float>) -> Status {
        for (size_t i = 0; i < logprobs.size(); ++i) {
          loss_sum -= double{logprobs[i]} / num_targets;
          entropy_sum += double{entropies[i]} / num_targets;
          dlogprobs[i] = slope;
        }
        return {};
      });
  Metrics metrics;
  GRADUS_RETURN_IF_ERROR(finish_update(learner_, stats, position_, metrics));
  ++position_.step;
  const std::vector<double> mine = {loss_sum, entropy_sum};
  const std::vector<double> sums = comm::all_reduce_sum(communicator_, mine);
  clock_.enter(std::move(before));
  const int64_t every = setup_.eval.every_steps;
  const bool is_evaluated =
      position_.step == setup_.sft.num_steps || (every > 0 && position_.step % every == 0);
  if (is_evaluated && !setup_.held_out.empty()) {
    const Result<double> loss = held_out_loss();
    GRADUS_RETURN_IF_ERROR(loss.status());
    metrics.set("val/loss", *loss);
  }
  if (!learner_.non_finite()) {
    metrics.set("train/loss", sums[0]);
    metrics.set("actor/entropy", sums[1]);
  }
  metrics.set("train/lr", learning_rate);
  const double seconds = add_lap(clock_, metrics);
  metrics.set("perf/total_num_tokens", num_tokens);
  metrics.set("perf/throughput", num_tokens / seconds / communicator_.size());
  metrics.set("perf/cpu_memory_peak_gb", static_cast<double>(memory_use().peak) / 1073741824.0);
  if (parts_.peak_device_bytes) {
    metrics.set("perf/max_memory_allocated_gb",
                static_cast<double>(parts_.peak_device_bytes()) / 1073741824.0);
  }
  metrics.set("training/global_step", static_cast<double>(position_.step));
  metrics.set("training/epoch", static_cast<double>(position_.data_position) /
                                    static_cast<double>(order_.num_rows()));
  last_metrics_ = metrics.values();
  const Phase phase(clock_, "timing_s/write_metrics");
  Status status;
  if (records_.metrics != nullptr) {
    status = records_.metrics->write(position_.step, metrics.values());
    display_.finish_step(position_.step, metrics.values());
  }
  return comm::agree(communicator_, status);
}

Result<double> SftTrainer::held_out_loss() {
  const Phase phase(clock_, "timing_s/testing");
  std::vector<data::PackGroup> groups;
  double num_targets = 0;
  for (const SftExample& example : setup_.held_out) {
    if (setup_.eval.max_rows && static_cast<int64_t>(groups.size()) == *setup_.eval.max_rows) break;
    groups.push_back({example.prompt, {example.response}});
    num_targets += static_cast<double>(example.response.size());
  }
  double sum = 0;
  const Status status = learner_.with_average([&]() -> Status {
    return learner_.forward(
        groups, 1.0f,
        [&](int64_t, int64_t, std::span<const float> logprobs, std::span<const float>) {
          for (const float logprob : logprobs) sum -= double{logprob} / num_targets;
        });
  });
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  return comm::all_reduce_sum(communicator_, {&sum, 1})[0];
}

Status SftTrainer::save() {
  const Phase phase(clock_, "timing_s/save_checkpoint");
  if (records_.saver == nullptr) return {};
  Status status;
  if (records_.metrics != nullptr) status = records_.metrics->sync();
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  return records_.saver->save(policy_, learner_, position_, best_metric(setup_.run, last_metrics_));
}

}  // namespace gradus::trainer
