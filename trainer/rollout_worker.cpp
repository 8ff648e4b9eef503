// SPDX-License-Identifier: Apache-2.0
#include "trainer/rollout_worker.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "data/wire/flow_messages.h"

namespace gradus::trainer {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Nothing is left to sample; it comes along to be scored with its siblings.
bool has_ended(const data::RolloutRequest& request) {
  return !request.begun.token_ids.empty() &&
         request.begun.finish_reason != data::FinishReason::kInterrupted;
}

records::RewardPartRecord part_record(const data::WeightedPart& part) {
  return {part.name,  part.raw, part.weight, part.weighted, data::reward_status_name(part.status),
          part.detail};
}

// Seconds are a rank's own, all else is added up over ranks.
Metrics without_timing(const Metrics& metrics) {
  Metrics kept;
  for (const MetricPart& part : metrics.parts()) {
    if (!part.name.starts_with("timing_s/")) kept.restore(part);
  }
  return kept;
}

}  // namespace

RolloutSetup rollout_setup(const TrainerConfig& trainer, const rollout::RolloutConfig& rollout) {
  return {rollout, trainer.overlong_buffer_tokens, trainer.overlong_penalty};
}

double overlong_of(const RolloutSetup& setup, const data::Trajectory& trajectory) {
  if (setup.overlong_buffer_tokens == 0) return 0;
  return rewards::overlong_penalty(static_cast<int64_t>(trajectory.behavior_logprobs.size()),
                                   setup.rollout.max_new_tokens, setup.overlong_buffer_tokens,
                                   setup.overlong_penalty, /*is_capped=*/false);
}

RolloutWorker::RolloutWorker(RolloutSetup setup, rollout::Engine& engine,
                             const rewards::RewardSum& rewards,
                             std::span<const data::Prompt> prompts)
    : setup_(std::move(setup)), engine_(engine), pool_(rewards, rewards.num_threads()) {
  for (const data::Prompt& prompt : prompts) prompts_[prompt.prompt_id] = &prompt;
}

Status RolloutWorker::sample(std::span<const data::RolloutRequest> requests,
                             comm::WeightStamp weights, std::span<data::Trajectory> trajectories,
                             const std::function<void(int64_t)>& progress) {
  const size_t group_size = static_cast<size_t>(setup_.rollout.num_samples);
  // A group of which a response may yet be interrupted waits for the end.
  std::vector<bool> waits(requests.size() / group_size, false);
  for (size_t i = 0; i < requests.size(); ++i) {
    if (requests[i].token_budget > 0) waits[i / group_size] = true;
  }
  class Sink : public rollout::TrajectorySink {
   public:
    std::function<void(size_t, data::Trajectory)> take;
    std::vector<size_t> places;  // of the open requests
    void finished(size_t request_index, data::Trajectory trajectory) override {
      take(places[request_index], std::move(trajectory));
    }
  };
  Sink sink;
  sink.take = [&](size_t i, data::Trajectory trajectory) {
    trajectories[i] = std::move(trajectory);
    if (!waits[i / group_size]) pool_.finished(i / group_size, i % group_size);
  };
  std::vector<data::RolloutRequest> open;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (has_ended(requests[i])) {
      sink.take(i, requests[i].begun);
    } else {
      sink.places.push_back(i);
      open.push_back(requests[i]);
    }
  }
  GRADUS_RETURN_IF_ERROR(engine_.run(open, weights.version, weights.hash, sink, nullptr,
                                     [&](int64_t finished, int64_t) {
                                       if (progress) progress(finished);
                                     }));
  for (size_t g = 0; g < waits.size(); ++g) {
    const auto group = trajectories.subspan(g * group_size, group_size);
    const bool is_whole = std::none_of(group.begin(), group.end(), [](const auto& trajectory) {
      return trajectory.finish_reason == data::FinishReason::kInterrupted;
    });
    for (size_t i = 0; waits[g] && is_whole && i < group_size; ++i) pool_.finished(g, i);
  }
  return {};
}

Result<std::vector<records::RolloutRecord>> RolloutWorker::work(
    std::span<const data::RolloutRequest> requests, int64_t step, comm::WeightStamp weights,
    Metrics& metrics, const std::function<void(int64_t)>& progress) {
  const Clock::time_point start = Clock::now();
  const size_t group_size = static_cast<size_t>(setup_.rollout.num_samples);
  GRADUS_CHECK(requests.size() % group_size == 0, "work is whole groups");
  std::vector<records::RolloutRecord> all(requests.size());
  std::vector<data::Trajectory> trajectories(requests.size());
  std::vector<rewards::Group> groups;
  for (size_t i = 0; i < all.size(); ++i) {
    const auto prompt = prompts_.find(requests[i].id.prompt_id);
    if (prompt == prompts_.end()) {
      return data_loss("prompt {} is not in this rank's data set; the ranks read different files",
                       requests[i].id.prompt_id);
    }
    all[i].step = step;
    all[i].prompt = prompt->second->text;
    all[i].task = prompt->second->task;
    all[i].answer = prompt->second->answer;
    if (i % group_size == 0) {
      groups.push_back({prompt->second, std::span(trajectories).subspan(i, group_size)});
    }
  }
  pool_.begin(groups);
  // The pool's threads look at `trajectories`.
  struct Guard {
    rewards::ScorePool& pool;
    ~Guard() { pool.cancel(); }
  } const guard{pool_};
  GRADUS_RETURN_IF_ERROR(sample(requests, weights, trajectories, progress));
  metrics.set("timing_s/gen", seconds_since(start));
  metrics.add("rollout/preemptions", static_cast<double>(engine_.stats().num_preemptions));
  if (!setup_.rollout.tools.empty()) {
    metrics.add("tools/wait_s", engine_.stats().tool_wait_seconds);
  }
  const Clock::time_point scoring = Clock::now();
  const Result<std::vector<data::RewardBreakdown>> scores = pool_.finish();
  if (!scores.ok()) return scores.status();
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].trajectory = std::move(trajectories[i]);
    GRADUS_RETURN_IF_ERROR(add_reward((*scores)[i], all[i]));
    for (const data::WeightedPart& part : (*scores)[i].parts) {
      if (part.num_retries == 0) continue;
      metrics.add("reward/" + part.name + "/retries", static_cast<double>(part.num_retries));
    }
  }
  metrics.set("timing_s/reward", seconds_since(scoring));
  pool_.add_metrics("perf/reward_", metrics);
  return all;
}

Status RolloutWorker::add_reward(const data::RewardBreakdown& score,
                                 records::RolloutRecord& record) const {
  for (const data::WeightedPart& part : score.parts) record.parts.push_back(part_record(part));
  if (!score.is_scored) return {};
  const data::Trajectory& trajectory = record.trajectory;
  if (!std::isfinite(score.total)) {
    return invalid_argument(
        "step {}, prompt {}, sample {}: the reward is {}; rewards must be finite numbers; repair "
        "the reward, or let it report an error",
        record.step, trajectory.id.prompt_id, trajectory.id.sample_index, score.total);
  }
  record.reward = score.total + overlong_of(setup_, trajectory);
  return {};
}

Status add_over_ranks(comm::Communicator& communicator, const Metrics& own, Metrics& metrics) {
  for (const char* name : {"timing_s/gen", "timing_s/reward"}) {
    const double before = metrics.contains(name) ? metrics.value(name) : 0.0;
    metrics.set(name, before + own.value(name));
  }
  for (const std::string& part : communicator.all_gather(data::encode(without_timing(own)))) {
    const Result<Metrics> theirs = data::decode_metrics(part);
    if (!theirs.ok()) return theirs.status();
    metrics.merge(*theirs);
  }
  return {};
}

Status serve_rollouts(comm::Communicator& world, int num_trainers, Policy& policy,
                      RolloutWorker& worker) {
  const std::span<float> weights(policy.transformer->parameters(),
                                 static_cast<size_t>(policy.transformer->layout().size));
  comm::WeightReceiver receiver(
      world, world.rank() % num_trainers, [](std::span<const float> values) {
        return model::hash_parameters(values.data(), static_cast<int64_t>(values.size()));
      });
  comm::WeightStamp held;
  for (;;) {
    const Result<comm::Message> message = world.wait(comm::Tag::kWork, 0, "work of the trainers");
    if (!message.ok()) return message.status();
    const Result<RolloutWork> work = decode_work(message->bytes);
    if (!work.ok()) return work.status();
    if (work->is_end) return {};
    world.watch().set_step(work->step);
    if (work->brings_weights) {
      const Result<comm::WeightStamp> stamp = receiver.receive(weights);
      if (!stamp.ok()) return stamp.status();
      held = *stamp;
    }
    RolloutAnswer answer;
    answer.number = work->number;
    answer.share = work->share;
    const auto records = [&]() -> Result<std::vector<records::RolloutRecord>> {
      if (!(held == work->weights)) {
        return data_loss(
            "the work is for weights of version {} (hash {:016x}), this rank holds version {} "
            "(hash {:016x})",
            work->weights.version, work->weights.hash, held.version, held.hash);
      }
      Metrics own;
      auto done =
          worker.work(work->requests, work->step, held, own, [&](int64_t) { world.progress(); });
      if (!done.ok()) return done;
      answer.metrics = without_timing(own);
      answer.metrics.set("rollout/busy_s", own.value("timing_s/gen"));
      return done;
    }();
    if (records.ok()) {
      answer.records = *records;
    } else {
      answer.error_code = static_cast<int64_t>(records.status().code());
      answer.error = records.status().message();
    }
    world.post(encode(answer), 0, comm::Tag::kRollouts);
  }
}

}  // namespace gradus::trainer
