// SPDX-License-Identifier: Apache-2.0
#include "trainer/preference_trainer.h"

#include <algorithm>

#include "model/sequence_scorer.h"
#include "trainer/checkpoint_saver.h"

namespace gradus::trainer {
namespace {

// Stands behind a response whose last token is to be scored: a pack has rows for the tokens that
// something is predicted from, and what is predicted means nothing to a score head.
constexpr int32_t kAfterTheEnd = 0;

// Whether weights of one can stand in the other's buffer and mean the same.
bool is_same_shape(model::ModelConfig a, model::ModelConfig b) {
  for (model::ModelConfig* config : {&a, &b}) {
    config->eos_ids.clear();
    config->bos_id.reset();
    config->pad_id.reset();
    config->max_position_embeddings = 0;
  }
  return a == b;
}

}  // namespace

struct PreferenceTrainer::Sums {
  double count = 0, loss = 0, num_right = 0;
  PairValues rewards, values;

  void add(const PairLoss& pair, const PairValues& pair_values) {
    count += 1;
    loss += pair.loss;
    num_right += pair.rewards.chosen > pair.rewards.rejected ? 1.0 : 0.0;
    rewards.chosen += pair.rewards.chosen;
    rewards.rejected += pair.rewards.rejected;
    values.chosen += pair_values.chosen;
    values.rejected += pair_values.rejected;
  }
  void reduce(comm::Communicator& communicator) {
    const std::vector<double> mine = {
        count, loss, num_right, rewards.chosen, rewards.rejected, values.chosen, values.rejected};
    const std::vector<double> all = comm::all_reduce_sum(communicator, mine);
    *this = {all[0], all[1], all[2], {all[3], all[4]}, {all[5], all[6]}};
  }
  // Means, under the names that follow `prefix`.
  void report(const std::string& prefix, const std::string& loss_name, bool has_logprobs,
              Metrics& metrics) const {
    metrics.set(loss_name, loss / count);
    metrics.set(prefix + "rewards/accuracies", num_right / count);
    metrics.set(prefix + "rewards/chosen", rewards.chosen / count);
    metrics.set(prefix + "rewards/rejected", rewards.rejected / count);
    metrics.set(prefix + "rewards/margins", (rewards.chosen - rewards.rejected) / count);
    if (!has_logprobs) return;
    metrics.set(prefix + "logps/chosen", values.chosen / count);
    metrics.set(prefix + "logps/rejected", values.rejected / count);
  }
};

PreferenceTrainer::PreferenceTrainer(PreferenceSetup setup, Policy& policy,
                                     comm::Communicator& communicator, RunRecords records,
                                     records::RunDisplay& display)
    : setup_(std::move(setup)),
      policy_(policy),
      communicator_(communicator),
      records_(records),
      display_(display),
      learner_(*policy.transformer, loop().optimizer, loop().backward, communicator),
      order_(static_cast<int64_t>(setup_.train_pairs.size()), setup_.data_seed, setup_.shuffle),
      train_reference_(setup_.train_pairs.size()),
      eval_reference_(setup_.eval_pairs.size()) {}

const PreferenceConfig& PreferenceTrainer::loop() const {
  return is_dpo() ? std::get<DpoConfig>(setup_.objective).loop
                  : std::get<RewardModelConfig>(setup_.objective).loop;
}

data::PackGroup PreferenceTrainer::group_of(const PreferencePair& pair) const {
  data::PackGroup group{pair.prompt, {pair.chosen, pair.rejected}};
  if (is_dpo()) return group;
  for (std::vector<int32_t>& response : group.responses) response.push_back(kAfterTheEnd);
  return group;
}

// What the loss sees of a pair's responses, of the model's outputs for their targets.
PairValues PreferenceTrainer::values_of(const PreferencePair& pair,
                                        std::span<const float> outputs) const {
  if (!is_dpo()) {
    const std::optional<int32_t> pad_id = policy_.transformer->config().pad_id;
    const size_t chosen = static_cast<size_t>(model::scored_target(pair.chosen, pad_id));
    const size_t rejected = static_cast<size_t>(model::scored_target(pair.rejected, pad_id));
    return {outputs[chosen], outputs[pair.chosen.size() + 1 + rejected]};
  }
  PairValues sums;
  const size_t num_chosen = pair.chosen.size();
  for (size_t i = 0; i < outputs.size(); ++i) {
    (i < num_chosen ? sums.chosen : sums.rejected) += double{outputs[i]};
  }
  return sums;
}

PairLoss PreferenceTrainer::loss_of(const PreferencePair& pair, const PairValues& values,
                                    const PairValues& reference) const {
  if (is_dpo()) {
    return dpo_loss(
        std::get<DpoConfig>(setup_.objective), values, reference,
        {static_cast<double>(pair.chosen.size()), static_cast<double>(pair.rejected.size())});
  }
  return bradley_terry_loss(values, pair.margin,
                            std::get<RewardModelConfig>(setup_.objective).center_coef);
}

// The backward of values_of.
void PreferenceTrainer::spread_slopes(const PreferencePair& pair, const PairValues& slopes,
                                      std::span<float> doutputs) const {
  if (!is_dpo()) {
    const std::optional<int32_t> pad_id = policy_.transformer->config().pad_id;
    const size_t chosen = static_cast<size_t>(model::scored_target(pair.chosen, pad_id));
    const size_t rejected = static_cast<size_t>(model::scored_target(pair.rejected, pad_id));
    doutputs[chosen] = static_cast<float>(slopes.chosen);
    doutputs[pair.chosen.size() + 1 + rejected] = static_cast<float>(slopes.rejected);
    return;
  }
  const size_t num_chosen = pair.chosen.size();
  for (size_t i = 0; i < doutputs.size(); ++i) {
    doutputs[i] = static_cast<float>(i < num_chosen ? slopes.chosen : slopes.rejected);
  }
}

// Values of the wanted pairs (zeros for the others) under the present weights, on every rank.
Result<std::vector<PairValues>> PreferenceTrainer::values_under_policy(
    std::span<const PreferencePair> pairs, const std::vector<bool>& wanted,
    const std::string& phase) {
  std::vector<size_t> rows;
  std::vector<data::PackGroup> groups;
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (!wanted[i]) continue;
    rows.push_back(i);
    groups.push_back(group_of(pairs[i]));
  }
  std::vector<double> flat(2 * groups.size(), 0.0);
  display_.begin_phase(phase, static_cast<int64_t>(groups.size()), "pairs");
  GRADUS_RETURN_IF_ERROR(learner_.forward(
      groups, 1.0f,
      [&](int64_t first, int64_t count, std::span<const float> outputs, std::span<const float>) {
        for (int64_t g = first; g < first + count; ++g) {
          const size_t index = static_cast<size_t>(g);
          const auto& responses = groups[index].responses;
          const size_t num_outputs = responses[0].size() + responses[1].size();
          const PairValues values = values_of(pairs[rows[index]], outputs.first(num_outputs));
          outputs = outputs.subspan(num_outputs);
          flat[2 * index] = values.chosen;
          flat[2 * index + 1] = values.rejected;
        }
        display_.advance_phase((first + count) * communicator_.size());
      }));
  display_.end_phase();
  flat = comm::all_reduce_sum(communicator_, flat);  // each is that of its rank, and zeros
  std::vector<PairValues> values(pairs.size());
  for (size_t i = 0; i < rows.size(); ++i) values[rows[i]] = {flat[2 * i], flat[2 * i + 1]};
  return values;
}

Status PreferenceTrainer::prepare() {
  if (!is_dpo()) return {};
  const std::string& path = std::get<DpoConfig>(setup_.objective).reference_path;
  if (path.empty()) return compute_reference();
  model::Transformer& policy = *policy_.transformer;
  std::vector<float> kept;
  const auto take_place = [&]() -> Status {
    const Result<model::CheckpointReader> reference = model::CheckpointReader::open(path);
    if (!reference.ok()) return reference.status();
    if (!is_same_shape(reference->config(), policy.config())) {
      return invalid_argument(
          "dpo.reference_path: the model in {} differs in its shape from the one that is trained; "
          "the reference must be of the same architecture, sizes and vocabulary",
          path);
    }
    kept.assign(policy.parameters(), policy.parameters() + policy.layout().size);
    return model::load_parameters(*reference, policy.layout(), policy.parameters());
  };
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, take_place()));
  const Status status = compute_reference();
  std::copy(kept.begin(), kept.end(), policy.parameters());
  return status;
}

Status PreferenceTrainer::compute_reference() {
  const Phase phase(clock_, "timing_s/ref");
  const uint64_t num_visits = static_cast<uint64_t>(loop().num_steps * loop().batch_pairs);
  std::vector<bool> visited(setup_.train_pairs.size(), false);
  if (num_visits >= visited.size()) visited.assign(visited.size(), true);
  for (uint64_t i = 0; num_visits < visited.size() && i < num_visits; ++i) {
    visited[static_cast<size_t>(order_.row_at(i))] = true;
  }
  Result<std::vector<PairValues>> train =
      values_under_policy(setup_.train_pairs, visited, "reference");
  if (!train.ok()) return train.status();
  Result<std::vector<PairValues>> eval =
      values_under_policy(eval_pairs(), std::vector<bool>(eval_pairs().size(), true), "reference");
  if (!eval.ok()) return eval.status();
  train_reference_ = std::move(*train);
  eval_reference_ = std::move(*eval);
  return {};
}

Status PreferenceTrainer::resume(const std::string& checkpoint_folder) {
  return comm::agree(communicator_,
                     load_checkpoint(checkpoint_folder, policy_, learner_, position_));
}

Status PreferenceTrainer::run() {
  if (position_.step >= loop().num_steps) {
    display_.print(
        fmt::format("the run has made all of its {} steps; raise {}.num_steps to train on",
                    loop().num_steps, is_dpo() ? "dpo" : "reward_model"));
  }
  if (setup_.eval.before_training && position_.step == 0 && !setup_.eval_pairs.empty()) {
    Metrics metrics;
    GRADUS_RETURN_IF_ERROR(evaluate(metrics));
    for (const auto& [name, seconds] : clock_.lap()) metrics.set(name, seconds);
    Status status;
    if (records_.metrics != nullptr) status = records_.metrics->write(0, metrics.values());
    GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  }
  return run_steps(
      loop().num_steps, setup_.run.checkpoint_every, position_, communicator_, display_,
      [this] { return step(); }, [this] { return save(); }, records_.saver, clock_);
}

std::span<const PreferencePair> PreferenceTrainer::eval_pairs() const {
  const std::span<const PreferencePair> pairs = setup_.eval_pairs;
  if (!setup_.eval.max_rows) return pairs;
  return pairs.first(std::min(pairs.size(), static_cast<size_t>(*setup_.eval.max_rows)));
}

Status PreferenceTrainer::evaluate(Metrics& metrics) {
  const Phase phase(clock_, "timing_s/testing");
  const std::span<const PreferencePair> pairs = eval_pairs();
  std::vector<PairValues> values;
  GRADUS_RETURN_IF_ERROR(learner_.with_average([&]() -> Status {
    Result<std::vector<PairValues>> now =
        values_under_policy(pairs, std::vector<bool>(pairs.size(), true), "evaluate");
    if (now.ok()) values = std::move(*now);
    return now.status();
  }));
  Sums sums;
  for (size_t i = 0; i < pairs.size(); ++i) {
    sums.add(loss_of(pairs[i], values[i], eval_reference_[i]), values[i]);
  }
  sums.report("val/", "val/loss", is_dpo(), metrics);
  return {};
}

Status PreferenceTrainer::step() {
  std::vector<data::PackGroup> groups;
  std::vector<size_t> rows;
  std::string before = clock_.enter("timing_s/update_actor");
  double num_tokens = 0;
  for (int64_t i = 0; i < loop().batch_pairs; ++i) {
    rows.push_back(static_cast<size_t>(order_.row_at(position_.data_position++)));
    const PreferencePair& pair = setup_.train_pairs[rows.back()];
    groups.push_back(group_of(pair));
    num_tokens +=
        static_cast<double>(pair.prompt.size() + pair.chosen.size() + pair.rejected.size());
  }
  const double num_pairs = static_cast<double>(rows.size());
  const double learning_rate =
      learning_rate_at(loop().optimizer, learner_.num_updates(), loop().num_steps);
  Sums sums;
  const Learner::LossFunction loss = [&](int64_t first, int64_t count,
                                         std::span<const float> outputs, std::span<const float>,
                                         std::span<float> doutputs, std::span<float>) -> Status {
    for (size_t g = static_cast<size_t>(first); g < static_cast<size_t>(first + count); ++g) {
      const PreferencePair& pair = setup_.train_pairs[rows[g]];
      const size_t num_outputs = groups[g].responses[0].size() + groups[g].responses[1].size();
      const PairValues values = values_of(pair, outputs.first(num_outputs));
      const PairLoss terms = loss_of(pair, values, train_reference_[rows[g]]);
      sums.add(terms, values);
      spread_slopes(pair, {terms.slopes.chosen / num_pairs, terms.slopes.rejected / num_pairs},
                    doutputs.first(num_outputs));
      outputs = outputs.subspan(num_outputs);
      doutputs = doutputs.subspan(num_outputs);
    }
    return {};
  };
  const Result<UpdateStats> stats =
      learner_.update(groups, std::vector<bool>(groups.size(), true), 1.0f, learning_rate, loss);
  Metrics metrics;
  GRADUS_RETURN_IF_ERROR(finish_update(learner_, stats, position_, metrics));
  ++position_.step;
  metrics.set("train/lr", learning_rate);
  if (!learner_.non_finite()) {
    sums.reduce(communicator_);
    sums.report("", "train/loss", is_dpo(), metrics);
  }
  clock_.enter(std::move(before));
  const int64_t every = setup_.eval.every_steps;
  const bool is_last = position_.step == loop().num_steps;
  if (!setup_.eval_pairs.empty() && every > 0 && (is_last || position_.step % every == 0)) {
    GRADUS_RETURN_IF_ERROR(evaluate(metrics));
  }
  const double seconds = add_lap(clock_, metrics);
  metrics.set("perf/total_num_tokens", num_tokens);
  metrics.set("perf/throughput", num_tokens / seconds / communicator_.size());
  return write_row(metrics);
}

Status PreferenceTrainer::write_row(Metrics& metrics) {
  metrics.set("perf/cpu_memory_peak_gb", static_cast<double>(memory_use().peak) / 1073741824.0);
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

Status PreferenceTrainer::save() {
  const Phase phase(clock_, "timing_s/save_checkpoint");
  if (records_.saver == nullptr) return {};
  Status status;
  if (records_.metrics != nullptr) status = records_.metrics->sync();
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  return records_.saver->save(policy_, learner_, position_, best_metric(setup_.run, last_metrics_));
}

}  // namespace gradus::trainer
