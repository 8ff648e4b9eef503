// SPDX-License-Identifier: Apache-2.0
#include "trainer/rollout_client.h"

#include <algorithm>

#include "common/log.h"
#include "data/wire/flow_messages.h"
#include "records/rollout_messages.h"

namespace gradus::trainer {

RolloutClient::RolloutClient(comm::Communicator& world, comm::Communicator& trainers,
                             std::vector<comm::TensorRange> tensors,
                             comm::WeightChannelOptions options)
    : world_(world), trainers_(trainers), sender_(world, std::move(tensors), options) {
  GRADUS_CHECK(trainers.size() < world.size(), "nobody is left to sample");
}

std::vector<int> RolloutClient::living() const {
  std::vector<int> ranks;
  for (int rank = trainers_.size(); rank < world_.size(); ++rank) {
    if (!world_.is_lost(rank)) ranks.push_back(rank);
  }
  return ranks;
}

int RolloutClient::num_lost() const {
  return world_.size() - trainers_.size() - static_cast<int>(living().size());
}

void RolloutClient::publish(std::span<const float> weights, comm::WeightStamp stamp) {
  if (has_published_ && stamp == stamp_) return;
  has_published_ = true;
  stamp_ = stamp;
  awaits_weights_ = living();
  std::vector<int> receivers;
  for (const int rank : awaits_weights_) {
    if (rank % trainers_.size() == world_.rank()) receivers.push_back(rank);
  }
  sender_.send(weights, stamp, receivers);
}

void RolloutClient::ask(int64_t step, std::vector<data::RolloutRequest> requests,
                        int64_t group_size) {
  GRADUS_CHECK(has_published_, "weights come before work");
  Asked asked;
  asked.work = {.number = ++num_works_, .step = step, .weights = stamp_};
  asked.work.requests = std::move(requests);
  asked.records.resize(asked.work.requests.size());
  std::vector<int> ranks = living();
  if (ranks.empty()) ranks.push_back(trainers_.size());  // collect() says that all are dead
  const size_t num_groups = asked.work.requests.size() / static_cast<size_t>(group_size);
  for (size_t i = 0; i < ranks.size(); ++i) {
    const auto request = [&](size_t part) {
      return num_groups * part / ranks.size() * static_cast<size_t>(group_size);
    };
    asked.shares.push_back({ranks[i], request(i), request(i + 1)});
  }
  for (size_t share = 0; share < asked.shares.size(); ++share) send_share(asked, share);
  asked_.push_back(std::move(asked));
}

// From rank 0, since it alone takes the answers.
void RolloutClient::send_share(const Asked& asked, size_t share) {
  const Share& part = asked.shares[share];
  const auto waiting = std::find(awaits_weights_.begin(), awaits_weights_.end(), part.rank);
  RolloutWork work = {.number = asked.work.number,
                      .share = share,
                      .step = asked.work.step,
                      .weights = asked.work.weights,
                      .brings_weights = waiting != awaits_weights_.end()};
  if (waiting != awaits_weights_.end()) awaits_weights_.erase(waiting);
  if (trainers_.rank() != 0) return;
  work.requests.assign(asked.work.requests.begin() + static_cast<ptrdiff_t>(part.first),
                       asked.work.requests.begin() + static_cast<ptrdiff_t>(part.end));
  world_.post(encode(work), part.rank, comm::Tag::kWork);
}

Status RolloutClient::give_lost_shares_away(Asked& asked) {
  const std::vector<int> ranks = living();
  size_t next = 0;
  for (size_t share = 0; share < asked.shares.size(); ++share) {
    Share& part = asked.shares[share];
    if (part.is_done || !world_.is_lost(part.rank)) continue;
    if (ranks.empty()) {
      return unavailable(
          "all {} rollout ranks have died; start the run again with --resume, on hosts that stay",
          world_.size() - trainers_.size());
    }
    const int heir = ranks[next++ % ranks.size()];
    log_warn("cluster", "a rollout rank died; another does its share",
             {{"rank", part.rank}, {"heir", heir}, {"responses", part.end - part.first}});
    part.rank = heir;
    send_share(asked, share);
  }
  return {};
}

Status RolloutClient::take(const comm::Message& message) {
  Result<RolloutAnswer> answer = decode_answer(message.bytes);
  if (!answer.ok()) return answer.status().with_prefix(fmt::format("rank {}", message.from));
  if (answer->error_code != 0) {
    return Status(static_cast<StatusCode>(answer->error_code),
                  fmt::format("rank {}: {}", message.from, answer->error));
  }
  for (Asked& asked : asked_) {
    if (asked.work.number != answer->number) continue;
    Share& share = asked.shares.at(answer->share);
    if (share.is_done) return {};  // it came from the dead after all
    if (answer->records.size() != share.end - share.first) {
      return data_loss("rank {}: {} responses came for {} requests", message.from,
                       answer->records.size(), share.end - share.first);
    }
    std::move(answer->records.begin(), answer->records.end(),
              asked.records.begin() + static_cast<ptrdiff_t>(share.first));
    asked.metrics.merge(answer->metrics);
    asked.num_done += static_cast<int64_t>(share.end - share.first);
    share.is_done = true;
    return {};
  }
  return {};  // of work that others did for it
}

Status RolloutClient::wait_for(Asked& asked, const std::function<void(int64_t)>& progress) {
  const auto is_done = [&] {
    return std::all_of(asked.shares.begin(), asked.shares.end(),
                       [](const Share& share) { return share.is_done; });
  };
  while (!is_done()) {
    const size_t num_lost = world_.watch().num_lost();
    GRADUS_RETURN_IF_ERROR(give_lost_shares_away(asked));
    const std::optional<comm::Message> message = world_.wait_any(
        comm::Tag::kRollouts, trainers_.size(), world_.size(), num_lost, "rollouts");
    if (!message) continue;  // somebody died
    GRADUS_RETURN_IF_ERROR(take(*message));
    if (progress) progress(asked.num_done);
  }
  return {};
}

Result<std::vector<records::RolloutRecord>> RolloutClient::collect(
    Metrics& metrics, const std::function<void(int64_t)>& progress) {
  GRADUS_CHECK(has_asked(), "nothing was asked for");
  Asked& asked = asked_.front();
  const Status status = trainers_.rank() == 0 ? wait_for(asked, progress) : Status();
  GRADUS_RETURN_IF_ERROR(comm::agree(trainers_, status, "rollouts"));
  if (trainers_.size() > 1) {
    const std::string mine = trainers_.rank() == 0 ? records::encode(asked.records) : std::string();
    const std::string bytes = trainers_.all_gather(mine, "rollouts")[0];
    if (trainers_.rank() != 0) {
      Result<std::vector<records::RolloutRecord>> records = records::decode_rollouts(bytes);
      GRADUS_RETURN_IF_ERROR(records.status());
      asked.records = std::move(*records);
    }
  }
  metrics.merge(asked.metrics);
  std::vector<records::RolloutRecord> records = std::move(asked.records);
  asked_.pop_front();
  return records;
}

void RolloutClient::end() {
  if (trainers_.rank() == 0) {
    for (const int rank : living()) {
      world_.post(encode(RolloutWork{.is_end = true}), rank, comm::Tag::kWork);
    }
  }
  world_.flush("the end of the rollouts");
}

}  // namespace gradus::trainer
