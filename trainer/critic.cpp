// SPDX-License-Identifier: Apache-2.0
#include "trainer/critic.h"

#include <cmath>
#include <cstring>

#include "trainer/value_loss.h"

namespace gradus::trainer {
namespace {

model::ModelSourceConfig source_of(const CriticConfig& config, model::ModelSourceConfig source) {
  if (config.path.empty()) return source;
  return {.path = config.path};
}

Status check_fits(const CriticConfig& config, const model::ModelConfig& critic,
                  const model::ModelConfig& policy) {
  if (critic.vocab_size != policy.vocab_size) {
    return invalid_argument(
        "trainer.critic.path: the model in {} has a vocabulary of {}, the policy one of {}; the "
        "critic reads the policy's tokens: name a model with the same tokenizer",
        config.path, critic.vocab_size, policy.vocab_size);
  }
  if (critic.max_position_embeddings < policy.max_position_embeddings) {
    return invalid_argument(
        "trainer.critic.path: the model in {} has a context of {}, the policy one of {}; name a "
        "model with one at least as long",
        config.path, critic.max_position_embeddings, policy.max_position_embeddings);
  }
  return {};
}

Status not_finite(const records::RolloutRecord& record, int64_t step, size_t token, float value) {
  return data_loss(
      "step {}, {}, response token {}: the critic's value is {}: its weights have left the range "
      "of floats; lower trainer.critic.learning_rate",
      step, place_of(record), token, value);
}

// What `values` of the records are to the advantages.
void take_values(std::span<ResponseGroup> groups) {
  for (ResponseGroup& group : groups) {
    group.values.clear();
    for (const records::RolloutRecord& record : group.records) {
      group.values.emplace_back(record.values.begin(), record.values.end());
    }
  }
}

// Sums of an update over micro-batches and ranks.
struct CriticSums {
  double loss = 0, num_clipped = 0, values = 0;
  double max_mismatch = 0;

  void reduce(comm::Communicator& communicator) {
    const std::vector<double> mine = {loss, num_clipped, values};
    const std::vector<double> all = comm::all_reduce_sum(communicator, mine);
    loss = all[0];
    num_clipped = all[1];
    values = all[2];
    const std::vector<double> largest_here = {max_mismatch};
    for (const double largest : comm::all_gather_values(communicator, largest_here)) {
      max_mismatch = std::max(max_mismatch, largest);
    }
  }
};

}  // namespace

Result<model::ModelConfig> critic_model_config(const CriticConfig& config,
                                               const model::ModelSourceConfig& source,
                                               const model::ModelConfig& policy) {
  Result<model::ModelConfig> critic = policy_config(source_of(config, source), model::Head::kScore);
  if (!critic.ok()) {
    return config.path.empty() ? critic.status()
                               : critic.status().with_prefix("trainer.critic.path");
  }
  GRADUS_RETURN_IF_ERROR(check_fits(config, *critic, policy));
  return critic;
}

Result<Policy> load_critic(const CriticConfig& config, const model::ModelSourceConfig& source,
                           const model::LoraConfig& lora, uint64_t seed,
                           const model::ModelConfig& policy) {
  const Result<model::ModelConfig> checked = critic_model_config(config, source, policy);
  if (!checked.ok()) return checked.status();
  return load_policy_to_train(source_of(config, source), lora, seed, model::Head::kScore);
}

Critic::Critic(Policy model, const TrainerConfig& config, const AlgorithmConfig& algorithm,
               comm::Communicator& communicator)
    : model_(std::move(model)),
      config_(config.critic.value()),
      algorithm_(algorithm),
      allow_mismatch_(config.allow_mismatch),
      num_planned_updates_(config.num_steps * config.mini_batches),
      communicator_(communicator),
      learner_(*model_.transformer, config_.optimizer, config.backward, communicator) {}

Status Critic::set_values(std::span<ResponseGroup> groups, int64_t step) {
  const PackedGroups packed = packed_groups(groups, algorithm_);
  std::vector<float> mine;
  GRADUS_RETURN_IF_ERROR(learner_.forward(
      packed.packs, 1.0f,
      [&](int64_t, int64_t, std::span<const float> values, std::span<const float>) {
        mine.insert(mine.end(), values.begin(), values.end());
      }));
  const std::vector<float> all = comm::all_gather_values(communicator_, mine);
  size_t at = 0;
  for (ResponseGroup& group : groups) {
    std::vector<std::vector<float>> by_record = split_tokens(group, algorithm_, all, at);
    for (size_t i = 0; i < group.records.size(); ++i) {
      for (size_t t = 0; t < by_record[i].size(); ++t) {
        const float value = by_record[i][t];
        if (!std::isfinite(value)) return not_finite(group.records[i], step, t, value);
      }
      group.records[i].values = std::move(by_record[i]);
    }
  }
  take_values(groups);
  num_updates_at_values_ = learner_.num_updates();
  return {};
}

Status Critic::keep_values(std::span<ResponseGroup> groups, int64_t step) const {
  for (const ResponseGroup& group : groups) {
    for (const records::RolloutRecord& record : group.records) {
      if (!takes_part(record, algorithm_) || !record.values.empty()) continue;
      return data_loss(
          "step {}, {}: the rollouts lack the critic's values at the start of the step, in whose "
          "middle the state lies; replay the rollouts that were written with that state",
          step, place_of(record));
    }
  }
  take_values(groups);
  return {};
}

Status Critic::check_mismatch(const records::RolloutRecord& record, std::span<const float> values,
                              int64_t step, double& largest) const {
  for (size_t t = 0; t < values.size(); ++t) {
    if (std::memcmp(&values[t], &record.values[t], sizeof(float)) == 0) continue;
    largest = std::max(largest, std::fabs(double{values[t]} - double{record.values[t]}));
    if (allow_mismatch_) continue;
    return {StatusCode::kInternal,
            fmt::format("step {}, {}, response token {}: the critic's value is {} in the update, "
                        "{} before it; they must be equal to the last bit; set "
                        "trainer.allow_mismatch to go on all the same, and please report it",
                        step, place_of(record), t, values[t], record.values[t])};
  }
  return {};
}

Status Critic::update(std::span<const ResponseGroup> groups, RunPosition& position,
                      Metrics& metrics, const std::function<void(int64_t)>& progress) {
  const double learning_rate =
      learning_rate_at(config_.optimizer, learner_.num_updates(), num_planned_updates_);
  metrics.set("critic/lr", learning_rate);
  const PackedGroups packed = packed_groups(groups, algorithm_);
  if (packed.packs.empty()) return {};
  std::vector<double> old_values, returns;
  std::vector<int64_t> sequence_begin = {0};
  for (const ResponseGroup* group : packed.groups) {
    for (size_t i = 0; i < group->records.size(); ++i) {
      if (!takes_part(group->records[i], algorithm_)) continue;
      old_values.insert(old_values.end(), group->values[i].begin(), group->values[i].end());
      returns.insert(returns.end(), group->returns[i].begin(), group->returns[i].end());
      sequence_begin.push_back(static_cast<int64_t>(returns.size()));
    }
  }
  GRADUS_CHECK(old_values.size() == returns.size(), "one value and one return per token");
  const BatchCounts counts = {.num_tokens = static_cast<double>(returns.size()),
                              .num_sequences = static_cast<double>(packed.sequences.size())};
  const int64_t step = position.step + 1;
  const bool is_first = learner_.num_updates() == num_updates_at_values_;
  CriticSums sums;
  int64_t groups_done = 0;
  const Learner::LossFunction loss = [&](int64_t first_group, int64_t num_groups,
                                         std::span<const float> values, std::span<const float>,
                                         std::span<float> dvalues, std::span<float>) -> Status {
    const size_t first =
        static_cast<size_t>(packed.first_sequence[static_cast<size_t>(first_group)]);
    const size_t end =
        static_cast<size_t>(packed.first_sequence[static_cast<size_t>(first_group + num_groups)]);
    const auto begins = std::span(sequence_begin).subspan(first, end - first + 1);
    const size_t origin = static_cast<size_t>(begins.front());
    for (size_t s = first; is_first && s < end; ++s) {
      const size_t at = static_cast<size_t>(sequence_begin[s]) - origin;
      const size_t length = static_cast<size_t>(sequence_begin[s + 1] - sequence_begin[s]);
      GRADUS_RETURN_IF_ERROR(check_mismatch(*packed.sequences[s], values.subspan(at, length), step,
                                            sums.max_mismatch));
    }
    const std::vector<double> now(values.begin(), values.end());
    std::vector<double> slopes(now.size());
    const ValueLossTerms terms = value_loss_terms(
        algorithm_, counts, begins, now, std::span(old_values).subspan(origin, now.size()),
        std::span(returns).subspan(origin, now.size()), config_.value_clip, slopes);
    sums.loss += terms.loss;
    sums.num_clipped += terms.num_clipped;
    for (size_t i = 0; i < now.size(); ++i) {
      sums.values += now[i];
      dvalues[i] = static_cast<float>(slopes[i]);
    }
    groups_done += num_groups;
    progress(groups_done);
    return {};
  };
  const Result<UpdateStats> stats = learner_.update(
      packed.packs, std::vector<bool>(packed.packs.size(), true), 1.0f, learning_rate, loss);
  if (const std::optional<NonFinite>& found = learner_.non_finite()) {
    return skip_update(
        data_loss("step {}, critic, {}: {} is not finite; the weights were not changed; lower "
                  "trainer.critic.learning_rate or look for broken rewards",
                  step, place_of(packed, found->group, found->response), found->what),
        position.critic_nonfinite_in_a_row, metrics);
  }
  if (!stats.ok()) return stats.status().with_prefix(fmt::format("step {}, critic", step));
  position.critic_nonfinite_in_a_row = 0;
  update_seconds_ = stats->compute_seconds;
  sums.reduce(communicator_);
  metrics.add("critic/vf_loss", sums.loss);
  metrics.add("critic/vf_clipfrac", sums.num_clipped / counts.num_tokens);
  metrics.add("critic/vpred_mean", sums.values / counts.num_tokens);
  metrics.add("critic/grad_norm", stats->grad_norm);
  if (is_first) metrics.add("mismatch/max_abs_value", sums.max_mismatch);
  return {};
}

void add_value_metrics(std::span<const ResponseGroup> groups, Metrics& metrics) {
  std::vector<double> values, returns;
  for (const ResponseGroup& group : groups) {
    for (size_t i = 0; i < group.records.size(); ++i) {
      if (group.returns[i].empty()) continue;
      values.insert(values.end(), group.values[i].begin(), group.values[i].end());
      returns.insert(returns.end(), group.returns[i].begin(), group.returns[i].end());
    }
  }
  if (values.empty()) return;
  for (const char* name : {"mean", "max", "min"}) {
    for (const double value : values) metrics.add(fmt::format("critic/values/{}", name), value);
    for (const double value : returns) metrics.add(fmt::format("critic/returns/{}", name), value);
  }
  metrics.set("critic/vf_explained_var", explained_variance(values, returns));
}

}  // namespace gradus::trainer
