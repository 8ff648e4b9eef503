// SPDX-License-Identifier: Apache-2.0
#include "trainer/rl_trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "common/log.h"

namespace gradus::trainer {
namespace {

using Clock = std::chrono::steady_clock;

// Adds the time since its making to a timing_s metric.
class PhaseTimer {
 public:
  PhaseTimer(Metrics& metrics, std::string name) : metrics_(metrics), name_(std::move(name)) {}
  ~PhaseTimer() {
    const double before = metrics_.contains(name_) ? metrics_.value(name_) : 0.0;
    metrics_.set(name_, before + std::chrono::duration<double>(Clock::now() - start_).count());
  }

 private:
  Metrics& metrics_;
  std::string name_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace

// A prompt with its responses; the records carry reward and advantage.
struct RlTrainer::Group {
  std::vector<records::RolloutRecord> records;
  bool has_signal = false;  // some advantage is not 0
};

RlTrainer::RlTrainer(RlSetup setup, Policy& policy, const rewards::RewardSum& rewards,
                     const Algorithm& algorithm, comm::Communicator& communicator,
                     RunRecords records, records::RunDisplay& display, RolloutClient* client)
    : setup_(std::move(setup)),
      policy_(policy),
      rewards_(rewards),
      algorithm_(algorithm),
      communicator_(communicator),
      records_(records),
      display_(display),
      learner_(*policy.transformer, setup_.trainer.optimizer, setup_.trainer.backward,
               communicator),
      engine_(*policy.transformer, policy.tokenizer.get(), engine_options(setup_.rollout)),
      order_(static_cast<int64_t>(setup_.train_prompts.size()), setup_.data_seed, setup_.shuffle),
      worker_(rollout_setup(setup_.trainer, setup_.rollout), engine_, rewards,
              setup_.train_prompts),
      phase_({rollout_setup(setup_.trainer, setup_.rollout), setup_.cluster,
              setup_.trainer.prompts_per_step, setup_.trainer.num_steps,
              static_cast<uint64_t>(setup_.run.seed)},
             policy.transformer->config(), setup_.train_prompts, order_, worker_, communicator,
             client),
      num_planned_updates_(setup_.trainer.num_steps * setup_.trainer.mini_batches) {
  if (setup_.trainer.algorithm.kl.coef != 0) {
    reference_ = std::make_unique<model::Transformer>(policy.transformer->config());
    std::copy_n(policy.transformer->parameters(), policy.transformer->layout().size,
                reference_->parameters());
    reference_pass_ = std::make_unique<model::TrainingPass>(*reference_, false);
  }
}

RlTrainer::~RlTrainer() = default;

Status RlTrainer::resume(const std::string& checkpoint_folder) {
  Status status = load_checkpoint(checkpoint_folder, policy_, learner_, position_);
  if (status.ok()) status = phase_.take_up(position_.ahead).with_prefix(checkpoint_folder);
  position_.ahead.clear();
  return comm::agree(communicator_, status);
}

Status RlTrainer::run() {
  if (position_.step >= setup_.trainer.num_steps) {
    display_.print(
        fmt::format("the run has made all of its {} steps; raise trainer.num_steps to train on",
                    setup_.trainer.num_steps));
  }
  if (setup_.eval.before_training && position_.step == 0 && !setup_.eval_prompts.empty()) {
    Metrics metrics;
    GRADUS_RETURN_IF_ERROR(evaluate_now(metrics));
    if (records_.metrics != nullptr) {
      GRADUS_RETURN_IF_ERROR(records_.metrics->write(0, metrics.values()));
    }
  }
  return run_steps(
      setup_.trainer.num_steps, setup_.run.checkpoint_every, position_, communicator_, display_,
      [this] { return step(); }, [this] { return save(); });
}

Status RlTrainer::step() {
  Metrics metrics;
  const Clock::time_point start = Clock::now();
  weights_hash_ =
      model::hash_parameters(policy_.transformer->parameters(), policy_.transformer->layout().size);
  Result<std::vector<Group>> groups = collect(metrics);
  if (!groups.ok()) return groups.status();
  {
    PhaseTimer timer(metrics, "timing_s/update_actor");
    display_.begin_phase("update", static_cast<int64_t>(groups->size()), "groups");
    const size_t num_mini_batches = static_cast<size_t>(setup_.trainer.mini_batches);
    for (size_t i = 0; i < num_mini_batches; ++i) {
      const size_t first = groups->size() * i / num_mini_batches;
      const size_t end = groups->size() * (i + 1) / num_mini_batches;
      const std::span<const Group> mini_batch = std::span(*groups).subspan(first, end - first);
      // A mini-batch without signal leaves the policy as it was.
      const uint64_t oldest = oldest_version(mini_batch);
      const bool is_on_policy = position_.policy_version == oldest;
      metrics.add("rollout/policy_lag", static_cast<double>(position_.policy_version - oldest));
      GRADUS_RETURN_IF_ERROR(update(mini_batch, is_on_policy, metrics));
    }
    display_.end_phase();
  }
  ++position_.step;
  const bool is_last = position_.step == setup_.trainer.num_steps;
  const int64_t every = setup_.eval.every_steps;
  if (!setup_.eval_prompts.empty() && every > 0 && (is_last || position_.step % every == 0)) {
    GRADUS_RETURN_IF_ERROR(evaluate_now(metrics));
  }
  int64_t num_tokens = 0;
  for (const Group& group : *groups) {
    for (const records::RolloutRecord& record : group.records) {
      num_tokens += static_cast<int64_t>(record.trajectory.token_ids.size());
    }
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  metrics.set("timing_s/step", seconds);
  metrics.set("perf/time_per_step", seconds);
  metrics.set("perf/total_num_tokens", static_cast<double>(num_tokens));
  const int64_t num_ranks =
      communicator_.size() +
      (setup_.cluster.mode == ClusterMode::kColocated ? 0 : setup_.cluster.rollout_ranks);
  metrics.set("perf/throughput",
              static_cast<double>(num_tokens) / seconds / static_cast<double>(num_ranks));
  return write_step(metrics, *groups);
}

// Of the weights that sampled any token of the groups; the present one if there is no group.
uint64_t RlTrainer::oldest_version(std::span<const Group> groups) const {
  uint64_t oldest = position_.policy_version;
  for (const Group& group : groups) {
    for (const records::RolloutRecord& record : group.records) {
      oldest = std::min(oldest, record.trajectory.policy_version);
      for (const data::Segment& segment : record.trajectory.segments) {
        oldest = std::min(oldest, segment.policy_version);
      }
    }
  }
  return oldest;
}

// The scored responses to the prompts of one batch from a data position on.
Result<std::vector<RlTrainer::Group>> RlTrainer::sample_round(uint64_t first_position,
                                                              Metrics& metrics) {
  const int64_t num_prompts = setup_.trainer.prompts_per_step;
  const int64_t num_samples = setup_.rollout.num_samples;
  const std::span<const float> weights(policy_.transformer->parameters(),
                                       static_cast<size_t>(policy_.transformer->layout().size));
  display_.begin_phase("rollout", num_prompts * num_samples, "responses");
  Result<std::vector<records::RolloutRecord>> records =
      phase_.batch(position_.step, first_position, learner_.groups_of_this_rank(num_prompts),
                   weights, {position_.policy_version, weights_hash_}, metrics,
                   [&](int64_t finished) { display_.advance_phase(finished); });
  display_.end_phase();
  if (!records.ok()) return records.status();
  GRADUS_CHECK(static_cast<int64_t>(records->size()) == num_prompts * num_samples,
               "groups of all ranks");
  std::vector<Group> groups(static_cast<size_t>(num_prompts));
  for (size_t i = 0; i < records->size(); ++i) {
    groups[i / static_cast<size_t>(num_samples)].records.push_back(std::move((*records)[i]));
  }
  for (Group& group : groups) assign_advantages(group);
  return groups;
}

// From the rewards of the scored responses.
void RlTrainer::assign_advantages(Group& group) const {
  std::vector<double> totals;
  for (const records::RolloutRecord& record : group.records) {
    if (!std::isnan(record.reward)) totals.push_back(record.reward);
  }
  const std::vector<double> advantages = algorithm_.advantage->advantages(totals);
  size_t next = 0;
  for (records::RolloutRecord& record : group.records) {
    if (std::isnan(record.reward)) continue;  // not scored: no advantage either
    record.advantage = advantages[next++];
    group.has_signal |= record.advantage != 0;
  }
}

// The step's groups: one round, or with dynamic sampling as many as it takes to replace groups
// without signal.
Result<std::vector<RlTrainer::Group>> RlTrainer::collect(Metrics& metrics) {
  const size_t wanted = static_cast<size_t>(setup_.trainer.prompts_per_step);
  std::vector<Group> batch;
  int64_t num_rounds = 0, num_groups = 0, num_flat = 0;
  Metrics round_metrics;
  do {
    Result<std::vector<Group>> round = sample_round(position_.data_position, metrics);
    if (!round.ok()) return round.status();
    position_.data_position += wanted;
    ++num_rounds;
    for (Group& group : *round) {
      ++num_groups;
      num_flat += group.has_signal ? 0 : 1;
      for (const records::RolloutRecord& record : group.records) {
        const data::Trajectory& trajectory = record.trajectory;
        const double length = static_cast<double>(trajectory.behavior_logprobs.size());
        const bool is_truncated = trajectory.finish_reason == data::FinishReason::kLength;
        metrics.add("rollout/num_responses", 1);
        metrics.add("rollout/truncated_fraction", is_truncated ? 1 : 0);
        metrics.add("response_length/mean", length);
        metrics.add("response_length/max", length);
        metrics.add("response_length/min", length);
        metrics.add("response_length/clip_ratio", is_truncated ? 1 : 0);
        metrics.add("prompt_length/mean", static_cast<double>(trajectory.prompt_length));
        metrics.add("prompt_length/max", static_cast<double>(trajectory.prompt_length));
        metrics.add("prompt_length/min", static_cast<double>(trajectory.prompt_length));
        const bool is_scored = !std::isnan(record.reward);
        metrics.add("reward/skipped_fraction", is_scored ? 0 : 1);
        if (is_scored) {
          double score = 0;
          for (const records::RewardPartRecord& part : record.parts) {
            if (part.status != "not_applicable") score += part.weighted;
          }
          for (const char* name : {"mean", "max", "min"}) {
            metrics.add(fmt::format("critic/score/{}", name), score);
            metrics.add(fmt::format("critic/rewards/{}", name), record.reward);
            metrics.add(fmt::format("critic/advantages/{}", name), record.advantage, length);
          }
        }
        for (const records::RewardPartRecord& part : record.parts) {
          const bool is_applicable = part.status != "not_applicable";
          const std::string prefix = "reward/" + part.name + "/";
          metrics.add(prefix + "not_applicable_fraction", is_applicable ? 0 : 1);
          if (!is_applicable) continue;
          metrics.add(prefix + "failed_fraction", part.status == "ok" ? 0 : 1);
          if (part.status == "ok") metrics.add(prefix + "mean", part.raw);
        }
      }
      if (setup_.trainer.dynamic_sampling && (!group.has_signal || batch.size() == wanted))
        continue;
      batch.push_back(std::move(group));
    }
  } while (setup_.trainer.dynamic_sampling && batch.size() < wanted &&
           num_rounds < setup_.trainer.max_sampling_rounds);
  metrics.set("rollout/zero_variance_group_fraction",
              static_cast<double>(num_flat) / static_cast<double>(num_groups));
  metrics.set("rollout/sampling_rounds", static_cast<double>(num_rounds));
  metrics.set("rollout/dropped_groups",
              static_cast<double>(num_groups) - static_cast<double>(batch.size()));
  if (batch.size() < wanted) {
    warn_once("trainer", "dynamic sampling",
              "dynamic sampling ran out of rounds; steps go on with fewer groups",
              {{"groups", batch.size()}, {"wanted", wanted}});
  }
  // Where others sample, timing_s/gen is how long the trainers waited for them.
  const double gen =
      metrics.value(metrics.contains("rollout/busy_s") ? "rollout/busy_s" : "timing_s/gen");
  const double tokens =
      metrics.value("response_length/mean") * metrics.value("rollout/num_responses");
  if (gen > 0) {
    metrics.set("rollout/tokens_per_s", tokens / gen);
    metrics.set("timing_per_token_ms/gen", 1000 * gen / tokens);
  }
  return batch;
}

Status RlTrainer::update(std::span<const Group> groups, bool is_on_policy, Metrics& metrics) {
  // What takes part in the loss: scored responses. The counts are those of the whole mini-batch.
  std::vector<data::PackGroup> packs;
  std::vector<std::vector<const records::RolloutRecord*>> sequences;
  std::vector<bool> needs_gradient;
  double num_tokens = 0, num_sequences = 0;
  const bool has_other_terms =
      setup_.trainer.algorithm.kl.coef != 0 || setup_.trainer.entropy_coef != 0;
  for (const Group& group : groups) {
    data::PackGroup pack;
    std::vector<const records::RolloutRecord*> included;
    for (const records::RolloutRecord& record : group.records) {
      const data::Trajectory& trajectory = record.trajectory;
      if (std::isnan(record.advantage) || trajectory.behavior_logprobs.empty()) continue;
      const auto split = trajectory.token_ids.begin() + trajectory.prompt_length;
      if (pack.prompt.empty()) pack.prompt.assign(trajectory.token_ids.begin(), split);
      pack.responses.emplace_back(split, trajectory.token_ids.end());
      included.push_back(&record);
      num_tokens += static_cast<double>(trajectory.behavior_logprobs.size());
      num_sequences += 1;
    }
    if (included.empty()) continue;
    packs.push_back(std::move(pack));
    sequences.push_back(std::move(included));
    needs_gradient.push_back(group.has_signal || has_other_terms);
  }
  const double learning_rate =
      learning_rate_at(setup_.trainer.optimizer, learner_.num_updates(), num_planned_updates_);
  metrics.set("actor/lr", learning_rate);
  if (std::find(needs_gradient.begin(), needs_gradient.end(), true) == needs_gradient.end()) {
    metrics.add("training/skipped_updates", 1);
    warn_once("trainer", "no signal",
              "a step had no group with different rewards: nothing to learn from it; make the task "
              "easier or harder, or sample more responses per prompt");
    return {};
  }
  metrics.add("training/skipped_updates", 0);
  metrics.add("training/num_updates", 1);

  double max_mismatch = 0;
  std::vector<double> sums(6,
                           0.0);  // policy loss, kl loss, entropy, clipped, dual clipped, policy kl
  const float temperature = static_cast<float>(setup_.rollout.temperature);
  int64_t groups_done = 0;
  const Learner::LossFunction loss =
      [&](int64_t first_group, int64_t num_groups, std::span<const float> logprobs,
          std::span<const float> entropies, std::span<float> dlogprobs,
          std::span<float> dentropies) -> Status {
    std::vector<int64_t> sequence_begin = {0};
    std::vector<double> advantages;
    std::vector<float> old_logprobs, reference_logprobs;
    for (int64_t g = first_group; g < first_group + num_groups; ++g) {
      for (const records::RolloutRecord* sequence : sequences[static_cast<size_t>(g)]) {
        const std::vector<float>& behavior = sequence->trajectory.behavior_logprobs;
        for (size_t t = 0; t < behavior.size(); ++t) {
          const float now = logprobs[old_logprobs.size() + t];
          if (!is_on_policy || std::memcmp(&now, &behavior[t], sizeof(float)) == 0) continue;
          max_mismatch = std::max(max_mismatch, std::fabs(double{now} - double{behavior[t]}));
          if (setup_.trainer.allow_mismatch) continue;
          const data::RequestId& id = sequence->trajectory.id;
          return Status(
              StatusCode::kInternal,
              fmt::format(
                  "step {}, prompt {}, sample {}, response token {}: the trainer's log-prob "
                  "is {}, the rollout recorded {}; they must be equal to the last bit; set "
                  "trainer.allow_mismatch to go on all the same, and please report it",
                  position_.step + 1, id.prompt_id, id.sample_index, t, now, behavior[t]));
        }
        old_logprobs.insert(old_logprobs.end(), behavior.begin(), behavior.end());
        sequence_begin.push_back(static_cast<int64_t>(old_logprobs.size()));
        advantages.push_back(sequence->advantage);
      }
    }
    if (reference_pass_ != nullptr) {
      const data::Pack pack = data::make_pack(std::span(packs).subspan(
          static_cast<size_t>(first_group), static_cast<size_t>(num_groups)));
      reference_pass_->forward(pack, temperature, false);
      reference_logprobs.assign(reference_pass_->logprobs().begin(),
                                reference_pass_->logprobs().end());
    }
    const LossTerms terms = loss_terms(*algorithm_.loss, setup_.trainer,
                                       {sequence_begin, advantages, logprobs, old_logprobs,
                                        reference_logprobs, entropies, num_tokens, num_sequences});
    for (size_t i = 0; i < dlogprobs.size(); ++i) {
      dlogprobs[i] = static_cast<float>(terms.dlogprobs[i]);
      dentropies[i] = static_cast<float>(terms.dentropies[i]);
    }
    sums[0] += terms.policy_loss;
    sums[1] += terms.kl_loss;
    sums[2] += terms.entropy;
    sums[3] += terms.clipped_tokens / num_tokens;
    sums[4] += terms.dual_clipped_tokens / num_tokens;
    sums[5] += terms.policy_kl / num_tokens;
    phase_.progress();
    groups_done += num_groups;
    display_.advance_phase(groups_done * communicator_.size());
    return {};
  };
  Result<UpdateStats> stats =
      learner_.update(packs, needs_gradient, temperature, learning_rate, loss);
  if (!stats.ok()) {
    return stats.status().with_prefix(fmt::format("step {}", position_.step + 1));
  }
  ++position_.policy_version;
  sums = comm::all_reduce_sum(communicator_, sums);
  for (const std::string& theirs : communicator_.all_gather(fmt::format("{}", max_mismatch))) {
    max_mismatch = std::max(max_mismatch, std::stod(theirs));
  }
  metrics.add("actor/pg_loss", sums[0]);
  metrics.add("actor/entropy", sums[2]);
  metrics.add("actor/pg_clipfrac", sums[3]);
  metrics.add("actor/pg_clipfrac_lower", sums[4]);
  metrics.add("actor/ppo_kl", sums[5]);
  metrics.add("actor/loss", sums[0] + setup_.trainer.algorithm.kl.coef * sums[1] -
                                setup_.trainer.entropy_coef * sums[2]);
  metrics.add("actor/grad_norm", stats->grad_norm);
  if (setup_.trainer.algorithm.kl.coef != 0) {
    metrics.add("actor/kl_loss", sums[1]);
    metrics.set("actor/kl_coef", setup_.trainer.algorithm.kl.coef);
  }
  if (is_on_policy) metrics.add("mismatch/max_abs_logprob", max_mismatch);
  return {};
}

Status RlTrainer::evaluate_now(Metrics& metrics) {
  PhaseTimer timer(metrics, "timing_s/testing");
  const EvaluationSettings settings = evaluation_settings(
      setup_.eval, setup_.rollout, policy_.transformer->config(), setup_.run.seed);
  std::span<const data::Prompt> prompts = setup_.eval_prompts;
  if (setup_.eval.max_rows) {
    prompts = prompts.first(std::min(prompts.size(), static_cast<size_t>(*setup_.eval.max_rows)));
  }
  display_.begin_phase("evaluate", static_cast<int64_t>(prompts.size()) * settings.num_samples,
                       "responses");
  const Status status = learner_.with_average([&]() -> Status {
    Result<Evaluation> evaluation = evaluate(
        engine_, rewards_, prompts, settings, communicator_,
        [&](int64_t finished) { display_.advance_phase(finished * communicator_.size()); });
    if (!evaluation.ok()) return evaluation.status();
    add_evaluation_metrics(*evaluation, settings.num_samples, metrics);
    evaluations_.push_back(std::move(*evaluation));
    return {};
  });
  display_.end_phase();
  return status;
}

Status RlTrainer::write_step(Metrics& metrics, std::span<const Group> groups) {
  const MemoryUse memory = memory_use();
  constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
  metrics.set("perf/cpu_memory_used_gb", static_cast<double>(memory.resident) / kGib);
  metrics.set("perf/cpu_memory_peak_gb", static_cast<double>(memory.peak) / kGib);
  metrics.set("training/global_step", static_cast<double>(position_.step));
  metrics.set("training/epoch", static_cast<double>(position_.data_position) /
                                    static_cast<double>(order_.num_rows()));
  last_metrics_ = metrics.values();
  Status status;
  if (records_.folder != nullptr && setup_.run.dump_rollouts) {
    PhaseTimer timer(metrics, "timing_s/dump_rollouts");
    std::vector<records::RolloutRecord> all;
    for (const Group& group : groups) {
      all.insert(all.end(), group.records.begin(), group.records.end());
    }
    status = records::write_rollouts(records_.folder->paths().rollouts(position_.step), all);
  }
  if (records_.metrics != nullptr && status.ok()) {
    status = records_.metrics->write(position_.step, metrics.values());
    display_.finish_step(position_.step, metrics.values());
  }
  return comm::agree(communicator_, status);
}

Status RlTrainer::save() {
  Result<std::string> ahead = phase_.take_down();
  if (!ahead.ok()) return ahead.status();
  position_.ahead = std::move(*ahead);
  Status status;
  if (records_.checkpoints != nullptr) {
    display_.begin_phase("checkpoint", 0, "");
    std::optional<double> metric;
    const auto best = last_metrics_.find(setup_.run.save_best_metric);
    if (best != last_metrics_.end()) metric = best->second;
    status = save_checkpoint(*records_.checkpoints, policy_, learner_, position_, metric);
    if (status.ok()) status = records_.metrics->sync();
    display_.end_phase();
  }
  position_.ahead.clear();
  return comm::agree(communicator_, status);
}

}  // namespace gradus::trainer
