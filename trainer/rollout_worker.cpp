// SPDX-License-Identifier: Apache-2.0
#include "trainer/rollout_worker.h"

#include <chrono>
#include <cmath>

namespace gradus::trainer {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void add_seconds(Metrics& metrics, const std::string& name, Clock::time_point start) {
  const double before = metrics.contains(name) ? metrics.value(name) : 0.0;
  metrics.set(name, before + seconds_since(start));
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

}  // namespace

RolloutSetup rollout_setup(const TrainerConfig& trainer, const rollout::RolloutConfig& rollout) {
  return {rollout, trainer.overlong_buffer_tokens, trainer.overlong_penalty};
}

RolloutWorker::RolloutWorker(RolloutSetup setup, rollout::Engine& engine,
                             const rewards::RewardSum& rewards,
                             std::span<const data::Prompt> prompts)
    : setup_(std::move(setup)), engine_(engine), rewards_(rewards) {
  for (const data::Prompt& prompt : prompts) prompts_[prompt.prompt_id] = &prompt;
}

Result<std::vector<data::Trajectory>> RolloutWorker::sample(
    std::span<const data::RolloutRequest> requests, comm::WeightStamp weights,
    const std::function<void(int64_t)>& progress) {
  std::vector<data::RolloutRequest> open;
  for (const data::RolloutRequest& request : requests) {
    if (!has_ended(request)) open.push_back(request);
  }
  Result<std::vector<data::Trajectory>> sampled =
      sample_all(engine_, open, weights.version, weights.hash, [&](int64_t finished, int64_t) {
        if (progress) progress(finished);
      });
  if (!sampled.ok()) return sampled;
  std::vector<data::Trajectory> all;
  size_t next = 0;
  for (const data::RolloutRequest& request : requests) {
    if (has_ended(request)) {
      all.push_back(request.begun);
    } else {
      all.push_back(std::move((*sampled)[next++]));
    }
  }
  return all;
}

Result<std::vector<records::RolloutRecord>> RolloutWorker::work(
    std::span<const data::RolloutRequest> requests, int64_t step, comm::WeightStamp weights,
    Metrics& metrics, const std::function<void(int64_t)>& progress) {
  Clock::time_point start = Clock::now();
  Result<std::vector<data::Trajectory>> trajectories = sample(requests, weights, progress);
  if (!trajectories.ok()) return trajectories.status();
  add_seconds(metrics, "timing_s/gen", start);
  metrics.add("rollout/preemptions", static_cast<double>(engine_.stats().num_preemptions));
  start = Clock::now();
  std::vector<records::RolloutRecord> all(requests.size());
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
    all[i].trajectory = std::move((*trajectories)[i]);
  }
  const size_t group_size = static_cast<size_t>(setup_.rollout.num_samples);
  GRADUS_CHECK(all.size() % group_size == 0, "work is whole groups");
  for (size_t first = 0; first < all.size(); first += group_size) {
    GRADUS_RETURN_IF_ERROR(score(std::span(all).subspan(first, group_size)));
  }
  add_seconds(metrics, "timing_s/reward", start);
  return all;
}

Status RolloutWorker::score(std::span<records::RolloutRecord> group) const {
  std::vector<data::Trajectory> samples;
  for (const records::RolloutRecord& record : group) {
    if (record.trajectory.finish_reason == data::FinishReason::kInterrupted) return {};
    samples.push_back(record.trajectory);
  }
  const rewards::Group rewarded{prompts_.at(group[0].trajectory.id.prompt_id), samples};
  const Result<std::vector<data::RewardBreakdown>> scores = rewards_.score({&rewarded, 1});
  if (!scores.ok()) return scores.status();
  for (size_t i = 0; i < group.size(); ++i) {
    const data::RewardBreakdown& score = (*scores)[i];
    for (const data::WeightedPart& part : score.parts) group[i].parts.push_back(part_record(part));
    if (!score.is_scored) continue;
    if (!std::isfinite(score.total)) {
      return invalid_argument(
          "step {}, prompt {}, sample {}: the reward is {}; rewards must be finite numbers; repair "
          "the reward, or let it report an error",
          group[i].step, group[i].trajectory.id.prompt_id, group[i].trajectory.id.sample_index,
          score.total);
    }
    group[i].reward = score.total;
    if (setup_.overlong_buffer_tokens > 0) {
      group[i].reward += rewards::overlong_penalty(
          static_cast<int64_t>(samples[i].behavior_logprobs.size()), setup_.rollout.max_new_tokens,
          setup_.overlong_buffer_tokens, setup_.overlong_penalty, /*is_capped=*/false);
    }
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
      answer.metrics.set("rollout/preemptions", own.value("rollout/preemptions"));
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
