// SPDX-License-Identifier: Apache-2.0
#include "trainer/rollout_phase.h"

#include <algorithm>
#include <chrono>

#include "records/rollout_messages.h"

namespace gradus::trainer {

RolloutPhase::RolloutPhase(RolloutPhaseSetup setup, const model::ModelConfig& model,
                           std::span<const data::Prompt> prompts, data::DataOrder& order,
                           RolloutWorker& worker, comm::Communicator& trainers,
                           RolloutClient* client)
    : setup_(std::move(setup)),
      sampling_(sampling_params(setup_.work.rollout, model)),
      prompts_(prompts),
      order_(order),
      worker_(worker),
      trainers_(trainers),
      client_(client) {
  GRADUS_CHECK((client_ == nullptr) == (setup_.cluster.mode == ClusterMode::kColocated),
               "rollout ranks go with split and async mode");
}

// Of prompts [begin, end) after a data position.
std::vector<data::RolloutRequest> RolloutPhase::requests_of(uint64_t first_position, int64_t begin,
                                                            int64_t end) {
  std::vector<data::RolloutRequest> requests;
  for (int64_t g = begin; g < end; ++g) {
    const uint64_t position = first_position + static_cast<uint64_t>(g);
    const data::Prompt& prompt = prompts_[static_cast<size_t>(order_.row_at(position))];
    for (int32_t i = 0; i < setup_.work.rollout.num_samples; ++i) {
      requests.push_back(
          {{prompt.prompt_id, i},
           prompt.token_ids,
           sampling_,
           rollout::request_seed(setup_.run_seed, order_.epoch_of(position), prompt.prompt_id, i)});
    }
  }
  return requests;
}

Result<std::vector<records::RolloutRecord>> RolloutPhase::batch(
    int64_t step, uint64_t first_position, BlockRange share, std::span<const float> weights,
    comm::WeightStamp stamp, Metrics& metrics, const std::function<void(int64_t)>& progress) {
  if (setup_.cluster.mode == ClusterMode::kColocated) {
    return own_batch(step, first_position, share, stamp, metrics, progress);
  }
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const auto get = [&]() -> Result<std::vector<records::RolloutRecord>> {
    if (setup_.cluster.mode == ClusterMode::kAsync) {
      return async_batch(step, first_position, weights, stamp, metrics, progress);
    }
    client_->publish(weights, stamp);
    client_->ask(step + 1, requests_of(first_position, 0, setup_.prompts_per_step),
                 setup_.work.rollout.num_samples);
    return client_->collect(metrics, progress);
  };
  Result<std::vector<records::RolloutRecord>> records = get();
  const double before = metrics.contains("timing_s/gen") ? metrics.value("timing_s/gen") : 0.0;
  metrics.set("timing_s/gen", before + std::chrono::duration<double>(Clock::now() - start).count());
  metrics.set("rollout/lost_ranks", client_->num_lost());
  return records;
}

Result<std::vector<records::RolloutRecord>> RolloutPhase::own_batch(
    int64_t step, uint64_t first_position, BlockRange share, comm::WeightStamp stamp,
    Metrics& metrics, const std::function<void(int64_t)>& progress) {
  Metrics own;
  const Result<std::vector<records::RolloutRecord>> mine =
      worker_.work(requests_of(first_position, share.first_group, share.end_group), step + 1, stamp,
                   own, progress);
  GRADUS_RETURN_IF_ERROR(comm::agree(trainers_, mine.status(), "rollouts"));
  GRADUS_RETURN_IF_ERROR(add_over_ranks(trainers_, own, metrics));
  if (trainers_.size() == 1) return mine;
  std::vector<records::RolloutRecord> all;
  for (const std::string& part : trainers_.all_gather(records::encode(*mine), "rollouts")) {
    Result<std::vector<records::RolloutRecord>> theirs = records::decode_rollouts(part);
    if (!theirs.ok()) return theirs.status();
    std::move(theirs->begin(), theirs->end(), std::back_inserter(all));
  }
  return all;
}

Result<std::vector<records::RolloutRecord>> RolloutPhase::async_batch(
    int64_t step, uint64_t first_position, std::span<const float> weights, comm::WeightStamp stamp,
    Metrics& metrics, const std::function<void(int64_t)>& progress) {
  if (!ahead_) {
    if (!client_->has_asked()) {
      client_->publish(weights, stamp);
      ask_ahead(step, first_position);
    }
    GRADUS_RETURN_IF_ERROR(collect_ahead(progress));
  }
  const size_t size =
      static_cast<size_t>(setup_.prompts_per_step * setup_.work.rollout.num_samples);
  std::vector<records::RolloutRecord> records = std::move(ahead_->records);
  metrics.merge(ahead_->metrics);
  ahead_.reset();
  GRADUS_CHECK(records.size() >= size, "a whole batch");
  begun_.clear();
  for (size_t i = size; i < records.size(); ++i) begun_.push_back(records[i].trajectory);
  records.resize(size);
  if (step + 1 < setup_.num_steps) {
    client_->publish(weights, stamp);
    ask_ahead(step + 1, first_position + static_cast<uint64_t>(setup_.prompts_per_step));
  }
  return records;
}

// The work that ends the batch of `step` and goes on with the batches after it.
void RolloutPhase::ask_ahead(int64_t step, uint64_t first_position) {
  const ClusterConfig& cluster = setup_.cluster;
  const int64_t num_batches = std::min(cluster.staleness, setup_.num_steps - step);
  std::vector<data::RolloutRequest> requests =
      requests_of(first_position, 0, num_batches * setup_.prompts_per_step);
  const size_t due = static_cast<size_t>(setup_.prompts_per_step * setup_.work.rollout.num_samples);
  const int64_t most = setup_.work.rollout.max_new_tokens;
  const int64_t budget = cluster.partial_tokens > 0
                             ? cluster.partial_tokens
                             : (most + cluster.staleness - 1) / cluster.staleness;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (i < begun_.size()) requests[i].begun = std::move(begun_[i]);
    if (i >= due) requests[i].token_budget = budget;
  }
  begun_.clear();
  client_->ask(step + 1, std::move(requests), setup_.work.rollout.num_samples);
}

Status RolloutPhase::collect_ahead(const std::function<void(int64_t)>& progress) {
  RolloutAnswer answer;
  Result<std::vector<records::RolloutRecord>> records = client_->collect(answer.metrics, progress);
  if (!records.ok()) return records.status();
  answer.records = std::move(*records);
  ahead_ = std::move(answer);
  return {};
}

Result<std::string> RolloutPhase::take_down() {
  if (setup_.cluster.mode != ClusterMode::kAsync) return std::string();
  if (!ahead_ && client_->has_asked()) GRADUS_RETURN_IF_ERROR(collect_ahead({}));
  return ahead_ ? encode(*ahead_) : std::string();
}

Status RolloutPhase::take_up(std::string_view state) {
  if (setup_.cluster.mode != ClusterMode::kAsync || state.empty()) return {};
  Result<RolloutAnswer> answer = decode_answer(state);
  if (!answer.ok()) return answer.status();
  ahead_ = std::move(*answer);
  return {};
}

void RolloutPhase::progress() {
  if (client_ != nullptr) client_->progress();
}

}  // namespace gradus::trainer
