// SPDX-License-Identifier: Apache-2.0
#include "trainer/rl_trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "common/log.h"
#include "common/rng.h"
#include "rollout/cpu_engine.h"
#include "trainer/algorithms/kl.h"
#include "trainer/checkpoint_saver.h"
#include "trainer/cpu_learner.h"
#include "trainer/critic.h"
#include "trainer/rubric_rewards.h"
#include "trainer/update_sums.h"

namespace gradus::trainer {
namespace {

// Versions whose hashes a checkpoint remembers; more than any bounded staleness.
constexpr size_t kMaxKnownVersions = 64;

// The rollout of a single response to a prompt.
RolloutSetup greedy_setup(RolloutSetup setup) {
  setup.rollout.num_samples = 1;
  return setup;
}

// The parts of the setup, with those of the CPU where there are none.
ComputeParts take_parts(RlSetup& setup, const AlgorithmConfig& algorithm, Policy& policy,
                        comm::Communicator& communicator) {
  ComputeParts parts = std::move(setup.parts);
  if (parts.learner == nullptr) {
    parts.learner = std::make_unique<CpuLearner>(*policy.transformer, setup.trainer.optimizer,
                                                 setup.trainer.backward, communicator);
  }
  if (parts.engine == nullptr) {
    parts.engine = std::make_unique<rollout::CpuEngine>(*policy.transformer, policy.tokenizer.get(),
                                                        engine_options(setup.rollout), setup.tools);
  }
  if (parts.reference == nullptr && algorithm.kl.coef != 0) {
    parts.reference = std::make_unique<CpuReferenceModel>(*policy.transformer);
  }
  return parts;
}

}  // namespace

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
      parts_(take_parts(setup_, algorithm.config, policy, communicator)),
      learner_(*parts_.learner),
      engine_(*parts_.engine),
      order_(static_cast<int64_t>(setup_.train_prompts.size()), setup_.data_seed, setup_.shuffle),
      worker_(rollout_setup(setup_.trainer, setup_.rollout), engine_, rewards,
              setup_.train_prompts),
      greedy_worker_(greedy_setup(rollout_setup(setup_.trainer, setup_.rollout)), engine_, rewards,
                     setup_.train_prompts),
      phase_({rollout_setup(setup_.trainer, setup_.rollout), setup_.cluster,
              setup_.trainer.prompts_per_step, setup_.trainer.num_steps,
              static_cast<uint64_t>(setup_.run.seed)},
             policy.transformer->config(), setup_.train_prompts, order_, worker_, communicator,
             client),
      num_planned_updates_(num_policy_updates(setup_.trainer)) {
  position_ = setup_.start;
  position_.kl_coef = algorithm_.config.kl.coef;
  if (rewards.rubric()) curriculum_.emplace(*rewards.rubric(), setup_.trainer.num_steps);
  if (setup_.critic) {
    critic_ = std::make_unique<Critic>(std::move(*setup_.critic), setup_.trainer, algorithm_.config,
                                       communicator);
  }
}

RlTrainer::~RlTrainer() = default;

Status RlTrainer::resume(const std::string& checkpoint_folder) {
  Status status = load_checkpoint(checkpoint_folder, policy_, learner_, position_, critic_.get());
  if (status.ok() && setup_.retriever != nullptr) {
    status = setup_.retriever->load(checkpoint_folder);
  }
  if (status.ok()) status = phase_.take_up(position_.ahead).with_prefix(checkpoint_folder);
  if (status.ok() && curriculum_ && !position_.rubric.empty()) {
    status = curriculum_->restore(position_.rubric).with_prefix(checkpoint_folder);
  }
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
    for (const auto& [name, seconds] : clock_.lap()) metrics.set(name, seconds);
    if (records_.metrics != nullptr) {
      GRADUS_RETURN_IF_ERROR(records_.metrics->write(0, metrics.values()));
    }
  }
  const int64_t last_step = setup_.load_rollouts.empty()
                                ? setup_.trainer.num_steps
                                : std::min(setup_.trainer.num_steps, setup_.last_loaded_step);
  return run_steps(
      last_step, setup_.run.checkpoint_every, position_, communicator_, display_,
      [this] { return step(); }, [this] { return save(); }, records_.saver, clock_);
}

Status RlTrainer::run_through() {
  while (position_.step < setup_.trainer.num_steps) GRADUS_RETURN_IF_ERROR(step());
  return {};
}

Status RlTrainer::step() {
  Metrics metrics;
  load_ = {};
  {
    const Phase phase(clock_, "timing_s/hash_weights");
    const Result<uint64_t> hash = learner_.weights_hash();
    GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, hash.status()));
    weights_hash_ = *hash;
    if (setup_.load_rollouts.empty()) {
      GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, learner_.ready_for_engine()));
    }
  }
  std::map<uint64_t, uint64_t>& known = position_.version_hashes;
  known[position_.policy_version] = weights_hash_;
  while (known.size() > kMaxKnownVersions) known.erase(known.begin());
  const uint64_t first_position = position_.data_position;
  if (setup_.retriever != nullptr) setup_.retriever->begin_sampling();
  Result<std::vector<Group>> groups =
      setup_.load_rollouts.empty() ? collect(metrics) : load_groups();
  if (setup_.retriever != nullptr) setup_.retriever->end_sampling();
  if (!groups.ok()) return groups.status();
  if (curriculum_ && setup_.load_rollouts.empty()) finish_curriculum_step(*curriculum_, metrics);
  for (Group& group : *groups) {
    for (records::RolloutRecord& record : group.records) {
      record.data_position = position_.data_position;
    }
  }
  {
    const Phase phase(clock_, "timing_s/adv");
    GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, check_versions(*groups)));
  }
  step_kl_coef_ = position_.kl_coef;
  GRADUS_RETURN_IF_ERROR(prepare(*groups, metrics));
  const bool trains_policy = setup_.retriever == nullptr || setup_.retriever->trains_policy();
  if (setup_.dump_rollouts.empty() && trains_policy) {
    GRADUS_RETURN_IF_ERROR(update_all(*groups, metrics));
  }
  if (setup_.retriever != nullptr && setup_.retriever->trains_retriever()) {
    GRADUS_RETURN_IF_ERROR(update_retriever(*groups, first_position, metrics));
  }
  ++position_.step;
  const bool is_last = position_.step == setup_.trainer.num_steps;
  const int64_t every = setup_.eval.every_steps;
  if (!setup_.eval_prompts.empty() && every > 0 && (is_last || position_.step % every == 0)) {
    GRADUS_RETURN_IF_ERROR(evaluate_now(metrics));
  }
  return write_step(metrics, *groups);
}

// Every update of the step: the critic's, one for each mini-batch, then the policy's.
Status RlTrainer::update_all(std::span<const Group> groups, Metrics& metrics) {
  const int64_t num_mini_batches = setup_.trainer.mini_batches;
  const int64_t num_of_critic = critic_ == nullptr ? 0 : num_mini_batches;
  const bool is_frozen =
      critic_ != nullptr && position_.step < setup_.trainer.critic->frozen_policy_steps;
  const int64_t num_updates = num_of_critic + (is_frozen ? 0 : num_mini_batches);
  // What a replay of the step begins from: its start, or the last update that was made.
  RunPosition replay;
  bool is_made = true, is_not_finite = false;
  Status status;
  for (int64_t i = position_.mini_batches_done; i < num_updates && status.ok(); ++i) {
    if (is_made) {
      replay = position_;
      replay.kl_coef = step_kl_coef_;
      replay.mini_batches_done = i;
    }
    const bool is_of_critic = i < num_of_critic;
    const size_t number = static_cast<size_t>(i % num_mini_batches);
    const size_t first = groups.size() * number / static_cast<size_t>(num_mini_batches);
    const size_t end = groups.size() * (number + 1) / static_cast<size_t>(num_mini_batches);
    const std::span<const Group> mini_batch = groups.subspan(first, end - first);
    display_.begin_phase(is_of_critic ? "critic" : "update",
                         static_cast<int64_t>(mini_batch.size()), "groups");
    if (is_of_critic) {
      const Phase phase(clock_, "timing_s/update_critic");
      status = critic_->update(mini_batch, position_, metrics, [&](int64_t groups_done) {
        phase_.progress();
        display_.advance_phase(groups_done * communicator_.size());
      });
      is_made = position_.critic_nonfinite_in_a_row == 0;
      is_not_finite = critic_->learner().non_finite().has_value();
    } else {
      const Phase phase(clock_, "timing_s/update_actor");
      // A mini-batch without signal leaves the policy as it was.
      const uint64_t oldest = oldest_version(mini_batch);
      metrics.add("rollout/policy_lag", static_cast<double>(position_.policy_version - oldest));
      status = update(mini_batch, position_.policy_version == oldest, metrics);
      is_made = position_.nonfinite_in_a_row == 0;
      is_not_finite = learner_.non_finite().has_value();
    }
    display_.end_phase();
  }
  if (!status.ok() && is_not_finite) return dump_failure(groups, replay, status);
  position_.mini_batches_done = 0;
  return status;
}

// Rollouts of the failed step with the state before it, for `gradus train --load-rollouts`.
Status RlTrainer::dump_failure(std::span<const Group> groups, const RunPosition& position,
                               const Status& reason) {
  const std::string folder = communicator_.all_gather(
      records_.folder == nullptr ? std::string()
                                 : records_.folder->paths().failed_step(position.step + 1))[0];
  if (folder.empty()) return reason;
  Status written;
  if (records_.folder != nullptr) {
    std::error_code error;
    std::filesystem::remove_all(folder, error);
    std::filesystem::create_directories(folder + "/checkpoint", error);
    std::vector<records::RolloutRecord> all;
    for (const Group& group : groups) {
      all.insert(all.end(), group.records.begin(), group.records.end());
    }
    written =
        records::write_rollouts(fmt::format("{}/step_{}.jsonl", folder, position.step + 1), all);
  }
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, written));
  const CheckpointShare share(policy_, learner_, position, communicator_.rank(),
                              communicator_.size(), critic_.get());
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, share.write(folder + "/checkpoint")));
  return {reason.code(),
          fmt::format("{}; its rollouts and the state before it are in {}, and gradus train CONFIG "
                      "--load-rollouts {} --set run.name=NEW repeats it",
                      reason.message(), folder, folder)};
}

// Weights that are not those of the version which a trajectory names are an error: it would be
// trained on as if another policy had sampled it.
Status RlTrainer::check_versions(std::span<const Group> groups) {
  const auto check = [&](const data::RequestId& id, uint64_t version, uint64_t hash) -> Status {
    const auto known = position_.version_hashes.find(version);
    const bool is_known = known != position_.version_hashes.end();
    if (is_known && known->second == hash) return {};
    return data_loss(
        "step {}, prompt {}, sample {}: sampled by weights {:016x} as policy version {}; here that "
        "version {}; replay rollouts with the configuration, seed and model of the run that wrote "
        "them",
        position_.step + 1, id.prompt_id, id.sample_index, hash, version,
        is_known ? fmt::format("has weights {:016x}", known->second) : "is not known");
  };
  for (const Group& group : groups) {
    for (const records::RolloutRecord& record : group.records) {
      const data::Trajectory& trajectory = record.trajectory;
      GRADUS_RETURN_IF_ERROR(
          check(trajectory.id, trajectory.policy_version, trajectory.weights_hash));
      for (const data::Segment& segment : trajectory.segments) {
        GRADUS_RETURN_IF_ERROR(check(trajectory.id, segment.policy_version, segment.weights_hash));
      }
    }
  }
  return {};
}

// The step's groups from disk, on every rank.
Result<std::vector<RlTrainer::Group>> RlTrainer::load_groups() {
  const Phase phase(clock_, "timing_s/load_rollouts");
  const std::string path =
      fmt::format("{}/step_{}.jsonl", setup_.load_rollouts, position_.step + 1);
  Result<std::vector<records::RolloutRecord>> loaded = records::read_rollouts(path);
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, loaded.status()));
  std::vector<Group> groups;
  for (records::RolloutRecord& record : *loaded) {
    const auto starts_group = [&](const records::RolloutRecord& before) {
      return before.trajectory.id.prompt_id != record.trajectory.id.prompt_id ||
             before.trajectory.id.sample_index >= record.trajectory.id.sample_index;
    };
    if (groups.empty() || starts_group(groups.back().records.back())) groups.emplace_back();
    position_.data_position = std::max(position_.data_position, record.data_position);
    groups.back().records.push_back(std::move(record));
  }
  return groups;
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
  const Phase phase(clock_, "timing_s/exchange");
  const auto measured = [&](const char* name) {
    return metrics.contains(name) ? metrics.value(name) : 0.0;
  };
  const double gen_before = measured("timing_s/gen"), reward_before = measured("timing_s/reward");
  display_.begin_phase("rollout", num_prompts * num_samples, "responses");
  Result<std::vector<records::RolloutRecord>> records =
      phase_.batch(position_.step, first_position, learner_.groups_of_this_rank(num_prompts),
                   weights, {position_.policy_version, weights_hash_}, metrics,
                   [&](int64_t finished) { display_.advance_phase(finished); });
  display_.end_phase();
  if (!records.ok()) return records.status();
  const double gen = measured("timing_s/gen") - gen_before;
  const double reward = measured("timing_s/reward") - reward_before;
  clock_.move("timing_s/exchange", "timing_s/gen", gen);
  clock_.move("timing_s/exchange", "timing_s/reward", reward);
  if (setup_.cluster.mode == ClusterMode::kColocated) add_load(gen + reward);
  GRADUS_CHECK(static_cast<int64_t>(records->size()) == num_prompts * num_samples,
               "groups of all ranks");
  std::vector<Group> groups(static_cast<size_t>(num_prompts));
  for (size_t i = 0; i < records->size(); ++i) {
    groups[i / static_cast<size_t>(num_samples)].records.push_back(std::move((*records)[i]));
  }
  for (Group& group : groups) {
    if (!curriculum_) break;
    apply_curriculum(*curriculum_, rollout_setup(setup_.trainer, setup_.rollout), group.records);
  }
  return groups;
}

namespace {

void add_tool_metrics(const data::Trajectory& trajectory,
                      const std::vector<rollout::ToolConfig>& tools, Metrics& metrics) {
  int64_t num_tokens = 0;
  for (const rollout::ToolConfig& tool : tools) {
    double calls = 0, invalid = 0, errors = 0, timeouts = 0, cut = 0;
    for (const data::Observation& observation : trajectory.observations) {
      if (observation.tool != tool.name) continue;
      calls += 1;
      invalid += observation.status == data::ToolStatus::kInvalid ? 1 : 0;
      errors += observation.status == data::ToolStatus::kError ? 1 : 0;
      timeouts += observation.status == data::ToolStatus::kTimeout ? 1 : 0;
      cut += observation.is_cut ? 1 : 0;
      num_tokens += observation.end - observation.begin;
    }
    const std::string prefix = "tools/" + tool.name + "/";
    metrics.add(prefix + "calls", calls);
    metrics.add(prefix + "invalid", invalid);
    metrics.add(prefix + "errors", errors);
    metrics.add(prefix + "timeouts", timeouts);
    metrics.add(prefix + "cut", cut);
  }
  metrics.add("tools/calls_per_response", static_cast<double>(trajectory.observations.size()));
  metrics.add("tools/observation_tokens", static_cast<double>(num_tokens));
  metrics.add("tools/limit_fraction",
              trajectory.finish_reason == data::FinishReason::kToolLimit ? 1 : 0);
}

}  // namespace

void RlTrainer::add_rollout_metrics(const Group& group, Metrics& metrics) const {
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
    if (!setup_.rollout.tools.empty()) add_tool_metrics(trajectory, setup_.rollout.tools, metrics);
    const bool is_scored = !std::isnan(record.reward);
    metrics.add("reward/skipped_fraction", is_scored ? 0 : 1);
    if (is_scored) {
      metrics.add(is_correct(record) ? "response_length/correct" : "response_length/incorrect",
                  length);
      double score = 0;
      for (const records::RewardPartRecord& part : record.parts) {
        if (part.status != "not_applicable") score += part.weighted;
      }
      for (const char* name : {"mean", "max", "min"}) {
        metrics.add(fmt::format("critic/score/{}", name), score);
        metrics.add(fmt::format("critic/rewards/{}", name), record.reward);
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
}

// The step's groups: one round, or with dynamic sampling as many as it takes to replace groups
// without signal.
Result<std::vector<RlTrainer::Group>> RlTrainer::collect(Metrics& metrics) {
  const size_t wanted = static_cast<size_t>(setup_.trainer.prompts_per_step);
  std::vector<Group> batch;
  int64_t num_rounds = 0, num_groups = 0, num_flat = 0;
  do {
    Result<std::vector<Group>> round = sample_round(position_.data_position, metrics);
    if (!round.ok()) return round.status();
    const Phase phase(clock_, "timing_s/adv");
    position_.data_position += wanted;
    ++num_rounds;
    for (Group& group : *round) {
      ++num_groups;
      num_flat += is_flat(group) ? 1 : 0;
      add_rollout_metrics(group, metrics);
      if (setup_.trainer.dynamic_sampling && (is_flat(group) || batch.size() == wanted)) continue;
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
  const double gen = metrics.contains("rollout/busy_s") ? metrics.value("rollout/busy_s")
                                                        : clock_.seconds("timing_s/gen");
  const double tokens =
      metrics.value("response_length/mean") * metrics.value("rollout/num_responses");
  if (gen > 0) {
    metrics.set("rollout/tokens_per_s", tokens / gen);
    metrics.set("timing_per_token_ms/gen", 1000 * gen / tokens);
  }
  return batch;
}

double RlTrainer::kl_coef() const {
  const KlConfig& kl = algorithm_.config.kl;
  return kl.controller == KlController::kAdaptive ? position_.kl_coef : kl.coef;
}

// Log-probs and entropies of all targets of `packs`, under the policy as it is or the initial
// model, each group computed by one rank and given to all.
Result<RlTrainer::TokenNumbers> RlTrainer::forward_all(std::span<const data::PackGroup> packs,
                                                       bool of_reference) {
  const float temperature = static_cast<float>(setup_.rollout.temperature);
  TokenNumbers mine;
  const auto append = [&](std::span<const float> logprobs, std::span<const float> entropies) {
    mine.logprobs.insert(mine.logprobs.end(), logprobs.begin(), logprobs.end());
    mine.entropies.insert(mine.entropies.end(), entropies.begin(), entropies.end());
  };
  Status status;
  if (of_reference) {
    const BlockRange range = learner_.groups_of_this_rank(static_cast<int64_t>(packs.size()));
    for (int64_t g = range.first_group; g < range.end_group && status.ok(); ++g) {
      status = parts_.reference->forward(data::make_pack(packs.subspan(static_cast<size_t>(g), 1)),
                                         temperature);
      append(parts_.reference->logprobs(), parts_.reference->entropies());
    }
  } else {
    status =
        learner_.forward(packs, temperature,
                         [&](int64_t, int64_t, std::span<const float> logprobs,
                             std::span<const float> entropies) { append(logprobs, entropies); });
  }
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  return TokenNumbers{comm::all_gather_values(communicator_, mine.logprobs),
                      comm::all_gather_values(communicator_, mine.entropies)};
}

// Log-probs of the policy at the start of the step for responses of earlier weights, where the
// algorithm compares the two; else the recorded ones stand for both.
Status RlTrainer::set_old_logprobs(std::span<Group> groups) {
  if (!needs_old_logprobs(algorithm_.config)) return {};
  std::vector<data::PackGroup> packs;
  std::vector<Group*> stale;
  for (Group& group : groups) {
    if (oldest_version({&group, 1}) == position_.policy_version) continue;
    data::PackGroup pack = pack_of(group, algorithm_.config);
    if (pack.responses.empty()) continue;
    packs.push_back(std::move(pack));
    stale.push_back(&group);
  }
  if (stale.empty()) return {};
  const Result<TokenNumbers> now = forward_all(packs, false);
  if (!now.ok()) return now.status();
  size_t at = 0;
  for (Group* group : stale) {
    group->old_logprobs = split_tokens(*group, algorithm_.config, now->logprobs, at);
  }
  return {};
}

// The reward of the greedy response to each prompt, sampled by the weights as they are.
Status RlTrainer::set_greedy_rewards(std::span<Group> groups, Metrics& metrics) {
  const BlockRange mine = learner_.groups_of_this_rank(static_cast<int64_t>(groups.size()));
  data::SamplingParams sampling = sampling_params(setup_.rollout, policy_.transformer->config());
  sampling.greedy = true;
  std::vector<data::RolloutRequest> requests;
  for (int64_t g = mine.first_group; g < mine.end_group; ++g) {
    const data::Trajectory& first = groups[static_cast<size_t>(g)].records[0].trajectory;
    requests.push_back({});
    requests.back().id = {first.id.prompt_id, 0};
    requests.back().token_ids.assign(first.token_ids.begin(),
                                     first.token_ids.begin() + first.prompt_length);
    requests.back().sampling = sampling;
  }
  Metrics own;
  const Result<std::vector<records::RolloutRecord>> greedy = greedy_worker_.work(
      requests, position_.step + 1, {position_.policy_version, weights_hash_}, own);
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, greedy.status()));
  GRADUS_RETURN_IF_ERROR(add_over_ranks(communicator_, own, metrics));
  std::vector<double> rewards;
  for (const records::RolloutRecord& record : *greedy) rewards.push_back(record.reward);
  rewards = comm::all_gather_values(communicator_, rewards);
  for (size_t g = 0; g < groups.size(); ++g) {
    groups[g].greedy_reward = rewards[g];
    if (!std::isnan(rewards[g])) continue;
    // Without a baseline there is nothing to compare with.
    for (records::RolloutRecord& record : groups[g].records) record.reward = rewards[g];
  }
  return {};
}

// With a KL in the reward: coefficient times KL at each token; the adaptive controller takes note.
Status RlTrainer::set_penalties(std::span<Group> groups, Metrics& metrics) {
  const Phase phase(clock_, "timing_s/ref");
  std::vector<data::PackGroup> packs;
  for (const Group& group : groups) {
    data::PackGroup pack = pack_of(group, algorithm_.config);
    if (!pack.responses.empty()) packs.push_back(std::move(pack));
  }
  const Result<TokenNumbers> reference = forward_all(packs, true);
  if (!reference.ok()) return reference.status();
  const double coef = kl_coef();
  size_t at = 0;
  double sum = 0, num_sequences = 0;
  for (Group& group : groups) {
    const auto reference_logprobs = split_tokens(group, algorithm_.config, reference->logprobs, at);
    group.penalties.assign(group.records.size(), {});
    for (size_t i = 0; i < group.records.size(); ++i) {
      if (reference_logprobs[i].empty()) continue;
      const std::vector<float>& old = group.old_logprobs.empty()
                                          ? group.records[i].trajectory.behavior_logprobs
                                          : group.old_logprobs[i];
      double of_sequence = 0;
      for (size_t t = 0; t < old.size(); ++t) {
        const double value =
            kl_term(algorithm_.config.kl.kind, old[t], old[t], old[t], reference_logprobs[i][t])
                .value;
        group.penalties[i].push_back(coef * value);
        of_sequence += value / static_cast<double>(old.size());
      }
      sum += of_sequence;
      num_sequences += 1;
    }
  }
  if (num_sequences == 0) return {};
  metrics.set("actor/reward_kl_penalty", sum / num_sequences);
  metrics.set("actor/reward_kl_penalty_coeff", coef);
  position_.kl_coef =
      adapted_kl_coef(algorithm_.config.kl, coef, sum / num_sequences, num_sequences);
  return {};
}

// From rewards to advantages, over the whole step.
Status RlTrainer::prepare(std::span<Group> groups, Metrics& metrics) {
  if (algorithm_.config.advantage == "remax") {
    GRADUS_RETURN_IF_ERROR(set_greedy_rewards(groups, metrics));
  }
  engine_.release_cache();  // nothing is sampled any more in this step
  GRADUS_RETURN_IF_ERROR(set_old_logprobs(groups));
  const KlConfig& kl = algorithm_.config.kl;
  if (kl.coef != 0 && kl.place == KlPlace::kReward) {
    GRADUS_RETURN_IF_ERROR(set_penalties(groups, metrics));
  }
  if (critic_ != nullptr) {
    const Phase phase(clock_, "timing_s/values");
    const bool is_within_step = position_.mini_batches_done > 0;
    GRADUS_RETURN_IF_ERROR(is_within_step ? critic_->keep_values(groups, position_.step + 1)
                                          : critic_->set_values(groups, position_.step + 1));
  }
  const Phase phase(clock_, "timing_s/adv");
  set_advantages(algorithm_, setup_.trainer, groups);
  if (setup_.weigh_groups) {
    std::vector<double> weights(groups.size(), 1.0);
    setup_.weigh_groups(groups, weights);
    for (size_t g = 0; g < groups.size(); ++g) scale_advantages(groups[g], weights[g]);
  }
  if (critic_ != nullptr) add_value_metrics(groups, metrics);
  for (const Group& group : groups) {
    for (const records::RolloutRecord& record : group.records) {
      if (std::isnan(record.advantage)) continue;
      const double length = static_cast<double>(record.trajectory.behavior_logprobs.size());
      for (const char* name : {"mean", "max", "min"}) {
        metrics.add(fmt::format("critic/advantages/{}", name), record.advantage, length);
      }
    }
  }
  return {};
}

// Whether the trainer computes what the rollout recorded, for a response of the policy as it is.
Status RlTrainer::check_mismatch(const records::RolloutRecord& record,
                                 std::span<const float> logprobs, double& largest) const {
  const std::vector<float>& behavior = record.trajectory.behavior_logprobs;
  for (size_t t = 0; t < behavior.size(); ++t) {
    if (std::memcmp(&logprobs[t], &behavior[t], sizeof(float)) == 0) continue;
    largest = std::max(largest, std::fabs(double{logprobs[t]} - double{behavior[t]}));
    if (setup_.trainer.allow_mismatch) continue;
    const data::RequestId& id = record.trajectory.id;
    return {StatusCode::kInternal,
            fmt::format("step {}, prompt {}, sample {}, response token {}: the trainer's log-prob "
                        "is {}, the rollout recorded {}; they must be equal to the last bit; set "
                        "trainer.allow_mismatch to go on all the same, and please report it",
                        position_.step + 1, id.prompt_id, id.sample_index, t, logprobs[t],
                        behavior[t])};
  }
  return {};
}

Status RlTrainer::update(std::span<const Group> groups, bool is_on_policy, Metrics& metrics) {
  const AlgorithmConfig& config = algorithm_.config;
  const bool has_kl_loss = config.kl.coef != 0 && config.kl.place == KlPlace::kLoss;
  // Terms that move tokens without an advantage too.
  const bool has_other_terms =
      has_kl_loss || setup_.trainer.entropy_coef != 0 || config.loss == "kl_cov";
  const PackedGroups packed = packed_groups(groups, config);
  std::vector<bool> needs_gradient;
  for (const Group* group : packed.groups) {
    const bool has_signal =
        std::any_of(group->advantages.begin(), group->advantages.end(), [](const auto& tokens) {
          return std::any_of(tokens.begin(), tokens.end(), [](double a) { return a != 0; });
        });
    needs_gradient.push_back(has_signal || has_other_terms);
  }
  const double learning_rate =
      learning_rate_at(setup_.trainer.optimizer, learner_.num_updates(), num_planned_updates_);
  metrics.set("actor/lr", learning_rate);
  if (std::find(needs_gradient.begin(), needs_gradient.end(), true) == needs_gradient.end()) {
    metrics.add("training/skipped_updates", 1);
    if (packed.packs.empty()) {
      warn_once("trainer", "all masked",
                "no response of an update takes part in the loss: each was cut off "
                "(trainer.algorithm.mask_truncated), empty or not scored; raise "
                "rollout.max_new_tokens or look at the rewards");
    } else {
      warn_once("trainer", "no signal",
                "a step had no group with different rewards: nothing to learn from it; make the "
                "task easier or harder, or sample more responses per prompt");
    }
    return {};
  }

  MiniBatch batch = mini_batch_of(
      groups, config, hash64({static_cast<uint64_t>(setup_.run.seed), position_.policy_version}));
  if (needs_preview_of_entropies(config) || (needs_preview_of_logprobs(config) && !is_on_policy)) {
    const Result<TokenNumbers> preview = forward_all(packed.packs, false);
    if (!preview.ok()) return preview.status();
    batch.logprobs.assign(preview->logprobs.begin(), preview->logprobs.end());
    batch.entropies.assign(preview->entropies.begin(), preview->entropies.end());
  }
  const LossPlan plan(config, *algorithm_.loss, setup_.trainer.entropy_coef, std::move(batch));
  UpdateSums sums;
  const float temperature = static_cast<float>(setup_.rollout.temperature);
  int64_t groups_done = 0;
  const Learner::LossFunction loss =
      [&](int64_t first_group, int64_t num_groups, std::span<const float> logprobs,
          std::span<const float> entropies, std::span<float> dlogprobs,
          std::span<float> dentropies) -> Status {
    const int64_t first = packed.first_sequence[static_cast<size_t>(first_group)];
    const int64_t end = packed.first_sequence[static_cast<size_t>(first_group + num_groups)];
    size_t at = 0;
    for (int64_t s = first; s < end; ++s) {
      const records::RolloutRecord& record = *packed.sequences[static_cast<size_t>(s)];
      const size_t length = record.trajectory.behavior_logprobs.size();
      if (is_on_policy) {
        GRADUS_RETURN_IF_ERROR(
            check_mismatch(record, logprobs.subspan(at, length), sums.max_mismatch));
      }
      sums.add_entropies(is_correct(record), entropies.subspan(at, length));
      at += length;
    }
    std::vector<double> reference_logprobs;
    if (has_kl_loss) {
      const Phase phase(clock_, "timing_s/ref");
      const data::Pack pack = data::make_pack(
          std::span(packed.packs)
              .subspan(static_cast<size_t>(first_group), static_cast<size_t>(num_groups)));
      GRADUS_RETURN_IF_ERROR(parts_.reference->forward(pack, temperature));
      const std::span<const float> values = parts_.reference->logprobs();
      reference_logprobs.assign(values.begin(), values.end());
    }
    const std::vector<double> now(logprobs.begin(), logprobs.end());
    const std::vector<double> entropies_now(entropies.begin(), entropies.end());
    const LossTerms terms =
        plan.terms({first, end - first, now, reference_logprobs, entropies_now, {}});
    for (size_t i = 0; i < dlogprobs.size(); ++i) {
      dlogprobs[i] = static_cast<float>(terms.dlogprobs[i]);
      dentropies[i] = static_cast<float>(terms.dentropies[i]);
    }
    sums.add(terms, plan.counts().num_tokens);
    phase_.progress();
    groups_done += num_groups;
    display_.advance_phase(groups_done * communicator_.size());
    return {};
  };
  Result<UpdateStats> stats =
      learner_.update(packed.packs, needs_gradient, temperature, learning_rate, loss);
  if (const std::optional<NonFinite>& found = learner_.non_finite()) {
    return skip_update(
        data_loss("step {}, {}: {} is not finite; the weights were not changed; lower the learning "
                  "rate or look for broken rewards",
                  position_.step + 1, place_of(packed, found->group, found->response), found->what),
        position_.nonfinite_in_a_row, metrics);
  }
  if (!stats.ok()) {
    return stats.status().with_prefix(fmt::format("step {}", position_.step + 1));
  }
  metrics.add("training/skipped_updates", 0);
  metrics.add("training/num_updates", 1);
  position_.nonfinite_in_a_row = 0;
  ++position_.policy_version;
  load_.update_seconds += stats->compute_seconds;
  sums.reduce(communicator_);
  sums.write(config, setup_.trainer.entropy_coef, metrics);
  metrics.add("actor/grad_norm", stats->grad_norm);
  if (config.correction.kind != CorrectionKind::kNone || plan.has_foreign_tokens()) {
    plan.add_correction_metrics(metrics);
  }
  if (is_on_policy) metrics.add("mismatch/max_abs_logprob", sums.max_mismatch);
  return {};
}

// The retriever's, from the searches in the responses that this rank sampled.
Status RlTrainer::update_retriever(std::span<const Group> groups, uint64_t first_position,
                                   Metrics& metrics) {
  const Phase phase(clock_, "timing_s/update_actor");
  const int64_t num_groups = static_cast<int64_t>(groups.size());
  const BlockRange mine = learner_.groups_of_this_rank(num_groups);
  std::vector<JointRetriever::Earned> responses;
  for (int64_t g = mine.first_group; g < mine.end_group; ++g) {
    const uint64_t pass = order_.epoch_of(first_position + static_cast<uint64_t>(g));
    for (const records::RolloutRecord& record : groups[static_cast<size_t>(g)].records) {
      if (std::isnan(record.advantage)) continue;
      const data::RequestId& id = record.trajectory.id;
      responses.push_back({rollout::request_seed(static_cast<uint64_t>(setup_.run.seed), pass,
                                                 id.prompt_id, id.sample_index),
                           record.advantage, g * retriever::kReductionBlocks / num_groups});
    }
  }
  return setup_.retriever
      ->update(responses, num_groups * setup_.rollout.num_samples, setup_.trainer.num_steps,
               communicator_, metrics)
      .with_prefix(fmt::format("step {}", position_.step + 1));
}

Status RlTrainer::evaluate_now(Metrics& metrics) {
  const Phase phase(clock_, "timing_s/testing");
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, learner_.ready_for_engine()));
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

// What this rank sampled by itself.
void RlTrainer::add_load(double rollout_seconds) {
  const rollout::EngineStats& stats = engine_.stats();
  load_.rollout_seconds += rollout_seconds;
  load_.slot_seconds += stats.slot_seconds;
  load_.tail_idle_seconds += stats.tail_idle_seconds;
  if (static_cast<double>(stats.longest_tokens) > load_.longest_tokens) {
    load_.longest_tokens = static_cast<double>(stats.longest_tokens);
    load_.longest_seconds = stats.longest_seconds;
  }
}

// How evenly the ranks were loaded, and what the longest responses cost.
void RlTrainer::add_balance(Metrics& metrics) {
  const Phase phase(clock_, "timing_s/exchange");
  const std::string mine(reinterpret_cast<const char*>(&load_), sizeof(load_));
  RankLoad sum, slowest;
  double slowest_whole = 0, longest_tokens = 0, longest_seconds = 0;
  const std::vector<std::string> all = communicator_.all_gather(mine);
  for (const std::string& text : all) {
    RankLoad load;
    std::memcpy(&load, text.data(), sizeof(load));
    sum.rollout_seconds += load.rollout_seconds;
    sum.update_seconds += load.update_seconds;
    sum.slot_seconds += load.slot_seconds;
    sum.tail_idle_seconds += load.tail_idle_seconds;
    slowest.rollout_seconds = std::max(slowest.rollout_seconds, load.rollout_seconds);
    slowest.update_seconds = std::max(slowest.update_seconds, load.update_seconds);
    if (load.longest_tokens > longest_tokens) {
      longest_tokens = load.longest_tokens;
      longest_seconds = load.longest_seconds;
    }
  }
  // Ranks meet after sampling and after backward.
  slowest_whole = slowest.rollout_seconds + slowest.update_seconds;
  const double num_ranks = static_cast<double>(all.size());
  if (sum.rollout_seconds > 0) {
    metrics.set("perf/imbalance/gen", slowest.rollout_seconds * num_ranks / sum.rollout_seconds);
  }
  if (sum.update_seconds > 0) {
    metrics.set("perf/imbalance/update_actor",
                slowest.update_seconds * num_ranks / sum.update_seconds);
  }
  if (slowest_whole > 0) {
    metrics.set("perf/rank_idle_fraction",
                1 - (sum.rollout_seconds + sum.update_seconds) / (num_ranks * slowest_whole));
  }
  if (sum.slot_seconds > 0) {
    metrics.set("perf/tail_idle_fraction", sum.tail_idle_seconds / sum.slot_seconds);
  }
  if (longest_seconds > 0) {
    metrics.set("rollout/longest_tokens_per_s", longest_tokens / longest_seconds);
  }
}

// The phases since the last line, and what follows from their sum.
void RlTrainer::add_times(Metrics& metrics, double num_tokens) {
  double step_seconds = 0;
  std::map<std::string, double> phases = clock_.lap();
  phases.try_emplace("timing_s/reward", 0.0);  // where others score, theirs is no part of the step
  for (const auto& [name, seconds] : phases) {
    metrics.set(name, seconds);
    step_seconds += seconds;
  }
  metrics.set("timing_s/step", step_seconds);
  metrics.set("perf/time_per_step", step_seconds);
  metrics.set("perf/total_num_tokens", num_tokens);
  const int64_t num_ranks =
      communicator_.size() +
      (setup_.cluster.mode == ClusterMode::kColocated ? 0 : setup_.cluster.rollout_ranks);
  metrics.set("perf/throughput", num_tokens / step_seconds / static_cast<double>(num_ranks));
  if (!metrics.contains("rollout/num_responses")) return;
  if (++num_steps_here_ == 2) totals_ = {};
  ++totals_.num_steps;
  totals_.rollout_seconds += phases["timing_s/gen"];
  for (const char* name :
       {"timing_s/update_actor", "timing_s/ref", "timing_s/values", "timing_s/update_critic"}) {
    totals_.update_seconds += phases[name];
  }
  totals_.exchange_seconds += phases["timing_s/exchange"];
  const double num_responses = metrics.value("rollout/num_responses");
  totals_.num_responses += num_responses;
  totals_.response_tokens += num_responses * metrics.value("response_length/mean");
  totals_.prompt_tokens += num_responses * metrics.value("prompt_length/mean");
  totals_.longest_response += metrics.value("response_length/max");
}

Status RlTrainer::write_step(Metrics& metrics, std::span<const Group> groups) {
  const MemoryUse memory = memory_use();
  constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
  metrics.set("perf/cpu_memory_used_gb", static_cast<double>(memory.resident) / kGib);
  metrics.set("perf/cpu_memory_peak_gb", static_cast<double>(memory.peak) / kGib);
  if (parts_.peak_device_bytes) {
    metrics.set("perf/max_memory_allocated_gb",
                static_cast<double>(parts_.peak_device_bytes()) / kGib);
  }
  metrics.set("training/global_step", static_cast<double>(position_.step));
  metrics.set("training/epoch", static_cast<double>(position_.data_position) /
                                    static_cast<double>(order_.num_rows()));
  add_balance(metrics);
  double num_tokens = 0;
  for (const Group& group : groups) {
    for (const records::RolloutRecord& record : group.records) {
      num_tokens += static_cast<double>(record.trajectory.token_ids.size());
    }
  }
  Status status;
  const bool is_dump_asked_for = setup_.run.dump_rollouts && setup_.load_rollouts.empty();
  if (records_.folder != nullptr && (is_dump_asked_for || !setup_.dump_rollouts.empty())) {
    const Phase phase(clock_, "timing_s/dump_rollouts");
    std::vector<records::RolloutRecord> all;
    for (const Group& group : groups) {
      all.insert(all.end(), group.records.begin(), group.records.end());
    }
    const std::string path =
        setup_.dump_rollouts.empty()
            ? records_.folder->paths().rollouts(position_.step)
            : fmt::format("{}/step_{}.jsonl", setup_.dump_rollouts, position_.step);
    std::error_code error;  // write_rollouts names what cannot be made
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
    status = records::write_rollouts(path, all);
  }
  add_times(metrics, num_tokens);
  last_metrics_ = metrics.values();
  if (setup_.on_step) setup_.on_step(metrics);
  const Phase phase(clock_, "timing_s/write_metrics");
  if (records_.metrics != nullptr && status.ok()) {
    status = records_.metrics->write(position_.step, metrics.values());
    display_.finish_step(position_.step, metrics.values());
  }
  return comm::agree(communicator_, status);
}

Status RlTrainer::save() {
  const Phase phase(clock_, "timing_s/save_checkpoint");
  Result<std::string> ahead = phase_.take_down();
  if (!ahead.ok()) return ahead.status();
  if (records_.saver == nullptr) return {};
  // The lines up to here must be on disk before a checkpoint says that they are.
  Status status;
  if (records_.metrics != nullptr) status = records_.metrics->sync();
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  display_.begin_phase("checkpoint", 0, "");
  RunPosition position = position_;
  position.ahead = std::move(*ahead);
  if (curriculum_) position.rubric = curriculum_->state();
  std::function<Status(const std::string&)> also;
  if (setup_.retriever != nullptr) {
    also = [this](const std::string& folder) { return setup_.retriever->save(folder); };
  }
  status = records_.saver->save(policy_, learner_, position, best_metric(setup_.run, last_metrics_),
                                critic_.get(), also);
  display_.end_phase();
  return status;
}

}  // namespace gradus::trainer
